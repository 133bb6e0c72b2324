"""EVA-01's student: a plain pre-norm ViT that predicts a teacher's features of masked patches.

Module names are the official state dict's, so a checkpoint is `state_dict()` and nothing is mapped.
This file is the plain PyTorch formulation: the reference for the fused one (`model/fused.py`),
which computes the same from the same parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.model import fused
from eva_fast.model.init import init_weights
from eva_fast.model.inputs import mask_indices, normalise
from eva_fast.model.sizes import ModelSizes

LAYER_NORM_EPS = 1e-6


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm with float32 statistics and parameters (EVA-01), result in x's dtype."""
    if x.dtype == norm.weight.dtype:
        return norm(x)
    y = F.layer_norm(x.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return y.to(x.dtype)


def drop_path_scale(rate: float, training: bool, x: Tensor) -> Tensor | None:
    """Per-sample factor of a residual branch, float32 [B]: 0 with probability `rate`, else
    1/(1-rate). None where nothing is dropped (Huang et al. 2016, scaled as in timm)."""
    if rate == 0.0 or not training:
        return None
    keep = torch.empty(x.shape[0], device=x.device, dtype=torch.float32).bernoulli_(1 - rate)
    return keep.div_(1 - rate)


def add_branch(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """x + scale * branch, the residual connection."""
    return x + (branch if scale is None else branch * scale.view(-1, 1, 1).to(branch.dtype))


def gather_tokens(x: Tensor, tokens: Tensor) -> Tensor:
    """Rows `tokens` int64 [B,K] of x [B,T,D] -> [B,K,D]."""
    return x.gather(1, tokens.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class PatchEmbed(nn.Module):
    """Convolution whose kernel is its stride: [B,3,H,W] -> [B,N,D]."""

    def __init__(self, patch_size: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head attention with q and v biases and none for k, as in BEiT and EVA."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """x [B,T,D] -> [B,T,D]; with `tokens` int64 [B,K] only those rows ask: [B,K,D]."""
        batch, _, dim = x.shape
        if tokens is None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
            q, k, v = F.linear(x, self.qkv.weight, bias).chunk(3, dim=-1)
        else:
            q_weight, k_weight, v_weight = self.qkv.weight.chunk(3)
            q = F.linear(gather_tokens(x, tokens), q_weight, self.q_bias)
            k, v = F.linear(x, k_weight), F.linear(x, v_weight, self.v_bias)
        q, k, v = (
            t.view(batch, -1, self.num_heads, self.head_dim).transpose(1, 2) for t in (q, k, v)
        )
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(out.transpose(1, 2).reshape(batch, -1, dim))


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, Linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + drop_path(attn(norm1(x))), then x + drop_path(mlp(norm2(x)))."""

    def __init__(self, dim: int, num_heads: int, hidden: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, hidden)
        self.drop_path = drop_path

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """[B,T,D] -> [B,T,D]; with `tokens` [B,K] only those rows come out, the same values as the
        full block gives them: all of the keys and values, nothing else of the other tokens."""
        y = self.attn(layer_norm(self.norm1, x), tokens)
        if tokens is not None:
            x = gather_tokens(x, tokens)
        x = add_branch(x, y, drop_path_scale(self.drop_path, self.training, x))
        y = self.mlp(layer_norm(self.norm2, x))
        return add_branch(x, y, drop_path_scale(self.drop_path, self.training, x))


class EvaViT(nn.Module):
    """The student with its head.

    `images` are uint8 [B,3,H,W] (normalised inside) or floats already normalised. `mask` is int32
    indices [B,K], ascending, or bool [B,N] with K True in every row. N patches, T = N+1 tokens,
    M = B*K masked rows, row-major over (image, patch). Source: EVA, CVPR 2023, and its code.

    Args:
        sizes: shapes of the model.
        drop_path: rate of the last block; it grows linearly from 0 in the first.
        compute_dtype: dtype of the blocks' arithmetic; parameters stay float32. Norm statistics,
            softmax and loss are float32 whatever it is.
        kernels: "torch" runs this file; anything else the fused formulation, whose ops
            `eva_fast.ops.set_kernels` chooses for the process.
    """

    def __init__(
        self,
        sizes: ModelSizes,
        drop_path: float = 0.0,
        compute_dtype: torch.dtype = torch.float32,
        kernels: str = "auto",
    ):
        super().__init__()
        if not 0.0 <= drop_path < 1.0:
            raise ValueError(f"drop_path must be at least 0 and below 1, got {drop_path}")
        self.sizes = sizes
        self.grid = sizes.grid
        self.compute_dtype = compute_dtype
        if kernels not in ("auto", "torch", "native", "triton"):
            raise ValueError(f"kernels must be auto, torch, native or triton, got {kernels!r}")
        self.fused = kernels != "torch"
        dim, depth = sizes.embed_dim, sizes.depth
        self.patch_embed = PatchEmbed(sizes.patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.num_patches + 1, dim))
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(dim, sizes.num_heads, sizes.mlp_hidden, rate) for rate in rates
        )
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.lm_head = nn.Linear(dim, sizes.predict_dim)
        if not self.pos_embed.is_meta:
            init_weights(self)

    def embed(self, images: Tensor, masked: Tensor | None) -> Tensor:
        """Tokens [B,T,D] before the first block; `masked` int64 [B,K] or None."""
        self._check_images(images)
        x = self.patch_embed(normalise(images, self.patch_embed.proj.weight.dtype))
        if masked is not None:
            rows = masked.unsqueeze(-1).expand(-1, -1, x.shape[-1])
            x = x.scatter(1, rows, self.mask_token.to(x.dtype).expand_as(rows))
        x = torch.cat([self.cls_token.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        return x + self.pos_embed.to(x.dtype)

    def forward_features(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """All tokens after the final norm, [B,T,D]."""
        if self.fused:
            return fused.forward_features(self, images, mask)
        masked = None if mask is None else mask_indices(mask, self.sizes.num_patches)
        with self._autocast(images):
            x = self.embed(images, masked)
            for block in self.blocks:
                x = block(x)
            return layer_norm(self.norm, x)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Predictions of the masked patches, [M,C]; the last block computes only their rows."""
        if self.fused:
            return fused.predict(self, images, mask)
        masked = mask_indices(mask, self.sizes.num_patches)
        with self._autocast(images):
            x = self.embed(images, masked)
            for block in self.blocks[:-1]:
                x = block(x)
            x = self.blocks[-1](x, masked + 1)
            return self.lm_head(layer_norm(self.norm, x)).flatten(0, 1)

    def loss(self, images: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """-mean cos(prediction, target) over all masked patches, float32 scalar; target [M,C]."""
        if self.fused:
            return fused.loss(self, images, mask, target)
        prediction = self(images, mask)
        if target.shape != prediction.shape:
            raise ValueError(
                f"target has shape {tuple(target.shape)}, the masked patches need "
                f"{tuple(prediction.shape)} (masked rows, teacher dimension)"
            )
        dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
        return -F.cosine_similarity(prediction.to(dtype), target.to(dtype), dim=-1).mean()

    def load_official(self, state_dict: dict[str, Tensor]) -> None:
        """Loads a state dict in official naming; ValueError lists what is missing, unknown or of
        another shape."""
        own = self.state_dict()
        missing, unknown = own.keys() - state_dict.keys(), state_dict.keys() - own.keys()
        wrong = [
            f"{k}: {tuple(state_dict[k].shape)} instead of {tuple(own[k].shape)}"
            for k in own.keys() & state_dict.keys()
            if own[k].shape != state_dict[k].shape
        ]
        faults = [
            f"{what}: {', '.join(sorted(keys)[:8])}{' ...' if len(keys) > 8 else ''}"
            for what, keys in (("missing", missing), ("unknown", unknown), ("shape", wrong))
            if keys
        ]
        if faults:
            raise ValueError("the weights do not fit this model; " + "; ".join(faults))
        self.load_state_dict(state_dict)
        fused.refresh_copies(self)

    def official_state_dict(self) -> dict[str, Tensor]:
        """Float32 copies on the CPU in official naming: what a checkpoint for others holds."""
        return {k: v.detach().float().cpu().clone() for k, v in self.state_dict().items()}

    def _autocast(self, images: Tensor):
        enabled = self.compute_dtype in (torch.bfloat16, torch.float16)
        dtype = self.compute_dtype if enabled else None
        return torch.autocast(images.device.type, dtype=dtype, enabled=enabled)

    def _check_images(self, images: Tensor) -> None:
        side = self.sizes.img_size
        if images.ndim != 4 or images.shape[1:] != (3, side, side):
            raise ValueError(
                f"images must be [B,3,{side},{side}] for this model, got {tuple(images.shape)}"
            )
