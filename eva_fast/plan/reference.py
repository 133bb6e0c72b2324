"""EVA-01's training step in plain PyTorch, twice: what the fused step is counted and timed against.

`OfficialViT` computes as the official code does: LayerNorm through a cast to float32, QK^T and
softmax as materialised float32 matrices, masked patches picked by a boolean index, all tokens
through every block. `TunedViT` is what a careful PyTorch user would write: native LayerNorm and
GELU, flash attention through `scaled_dot_product_attention`, index gather. Both have the official
parameter names, so a state dict of either, of `EvaViT` or of EVA-01 loads into all.

Source: EVA (Fang et al., CVPR 2023) and its published code, EVA-01/eva.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.model.sizes import ModelSizes

EPS = 1e-6
BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.05
CLIP_NORM = 3.0


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """x with whole samples zeroed with probability `rate` and the others scaled by 1/(1-rate)."""
    if rate == 0.0 or not training:
        return x
    keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - rate)
    return x * keep.div_(1 - rate)


class CastLayerNorm(nn.LayerNorm):
    """LayerNorm of float32 copies of input and parameters, the result cast back."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).type_as(x)


class AttentionParameters(nn.Module):
    """What both attentions hold: one packed projection, biases for q and v alone."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)


class OfficialAttention(AttentionParameters):
    """softmax(q k^T) v with the [B,H,T,T] scores in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """[B,T,D] -> [B,T,D]."""
        batch, tokens, _ = x.shape
        no_k_bias = torch.zeros_like(self.v_bias, requires_grad=False)
        bias = torch.cat((self.q_bias, no_k_bias, self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias).reshape(batch, tokens, 3, self.num_heads, -1)
        heads = qkv.permute(2, 0, 3, 1, 4)
        q, k, v = heads[0], heads[1], heads[2]
        scores = (q * self.scale).float() @ k.float().transpose(-2, -1)
        out = scores.softmax(dim=-1).type_as(x) @ v
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, -1))


class TunedAttention(AttentionParameters):
    """The same by PyTorch's flash attention; the packed bias [3D] comes from the model."""

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = F.linear(x, self.qkv.weight, bias).reshape(batch, tokens, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, -1))


class Mlp(nn.Module):
    """Linear, erf GELU, Linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + drop_path(attn(norm1(x))), then x + drop_path(mlp(norm2(x))); `extra` goes to attn."""

    def __init__(self, norm: type, attention: type, sizes: ModelSizes, rate: float):
        super().__init__()
        self.norm1 = norm(sizes.embed_dim, eps=EPS)
        self.attn = attention(sizes.embed_dim, sizes.num_heads)
        self.norm2 = norm(sizes.embed_dim, eps=EPS)
        self.mlp = Mlp(sizes.embed_dim, sizes.mlp_hidden)
        self.rate = rate

    def forward(self, x: Tensor, *extra: Tensor) -> Tensor:
        x = x + drop_path(self.attn(self.norm1(x), *extra), self.rate, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.rate, self.training)


class PatchEmbed(nn.Module):
    """Convolution whose kernel is its stride: [B,3,H,W] -> [B,N,D]."""

    def __init__(self, sizes: ModelSizes):
        super().__init__()
        self.proj = nn.Conv2d(3, sizes.embed_dim, sizes.patch_size, sizes.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class OfficialViT(nn.Module):
    """The student as EVA-01's code computes it. Images are normalised floats [B,3,H,W], the mask
    is bool [B,N]. Under float16 or bfloat16 the whole module is cast (`.half()`), as the official
    run does through DeepSpeed."""

    norm_type: type = CastLayerNorm
    attention_type: type = OfficialAttention

    def __init__(self, sizes: ModelSizes, drop_path: float = 0.0):
        super().__init__()
        self.sizes = sizes
        dim, depth = sizes.embed_dim, sizes.depth
        self.patch_embed = PatchEmbed(sizes)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.num_patches + 1, dim))
        self.blocks = nn.ModuleList(
            Block(self.norm_type, self.attention_type, sizes, drop_path * i / max(depth - 1, 1))
            for i in range(depth)
        )
        self.norm = self.norm_type(dim, eps=EPS)
        self.lm_head = nn.Linear(dim, sizes.predict_dim)

    def inputs(self, mask: Tensor) -> tuple[Tensor, ...]:
        """What `forward` wants besides the images, from a bool mask [B,N]: the loader's work."""
        return (mask,)

    def forward_features(self, images: Tensor, mask: Tensor) -> Tensor:
        """All tokens after the final norm, [B,T,D]."""
        x = self.patch_embed(images)
        batch, patches, _ = x.shape
        cls_tokens = self.cls_token.expand(batch, -1, -1)
        mask_token = self.mask_token.expand(batch, patches, -1)
        w = mask.unsqueeze(-1).type_as(mask_token)
        x = x * (1 - w) + mask_token * w
        x = torch.cat((cls_tokens, x), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, images: Tensor, *inputs: Tensor) -> Tensor:
        """Predictions of the masked patches [M,C], row-major over (image, patch)."""
        (mask,) = inputs
        return self.lm_head(self.forward_features(images, mask)[:, 1:][mask])

    def loss(self, target: Tensor, *inputs: Tensor) -> Tensor:
        """-mean cos(prediction, target) in float32; `inputs` are those of `forward`."""
        prediction = self(*inputs).float()
        return -F.cosine_similarity(prediction, target.float(), dim=-1).mean()


class TunedViT(OfficialViT):
    """The same numbers from well-written PyTorch: what eager mode can give without own kernels.

    The q and v biases of all blocks are packed by one `cat`; masked tokens are gathered by rows
    that the loader computes, so nothing waits for the device."""

    norm_type = nn.LayerNorm
    attention_type = TunedAttention
    no_k_bias: Tensor

    def __init__(self, sizes: ModelSizes, drop_path: float = 0.0):
        super().__init__(sizes, drop_path)
        self.register_buffer("no_k_bias", torch.zeros(sizes.embed_dim), persistent=False)

    def inputs(self, mask: Tensor) -> tuple[Tensor, ...]:
        """(mask bool [B,N], rows int64 [M] of the masked tokens among the [B*T] tokens)."""
        image, patch = mask.nonzero(as_tuple=True)
        return mask, image * (self.sizes.num_patches + 1) + patch + 1

    def forward_features(self, images: Tensor, mask: Tensor) -> Tensor:
        x = self.patch_embed(images)
        x = torch.where(mask.unsqueeze(-1), self.mask_token, x)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + self.pos_embed
        parts: list[Tensor] = []
        for block in self.blocks:
            attn = block.get_submodule("attn")
            parts += [attn.get_parameter("q_bias"), self.no_k_bias, attn.get_parameter("v_bias")]
        biases = torch.cat(parts).view(len(self.blocks), -1).unbind(0)
        for block, bias in zip(self.blocks, biases, strict=True):
            x = block(x, bias)
        return self.norm(x)

    def forward(self, images: Tensor, *inputs: Tensor) -> Tensor:
        mask, rows = inputs
        features = self.forward_features(images, mask).flatten(0, 1)
        return self.lm_head(features.index_select(0, rows))

    def loss(self, target: Tensor, *inputs: Tensor) -> Tensor:
        prediction, target = self(*inputs).float(), target.float()
        unit = target / torch.linalg.vector_norm(target, dim=-1, keepdim=True)
        return -((prediction * unit).sum(-1) / torch.linalg.vector_norm(prediction, dim=-1)).mean()


def parameter_groups(model: nn.Module) -> list[dict]:
    """AdamW's two groups: no decay for 1-D parameters, biases, `pos_embed` and `cls_token`."""
    decay: list[Tensor] = []
    plain: list[Tensor] = []
    for name, p in model.named_parameters():
        exempt = p.ndim == 1 or name.endswith(".bias") or name in ("pos_embed", "cls_token")
        (plain if exempt else decay).append(p)
    return [
        {"params": decay, "weight_decay": WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]


def make_optimizer(model: OfficialViT, lr: float = 1e-3) -> torch.optim.AdamW:
    """torch's AdamW with EVA-01's settings: fused for `TunedViT`, PyTorch's default otherwise."""
    fused = True if isinstance(model, TunedViT) else None
    groups = parameter_groups(model)
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, eps=EPS, fused=fused)


def train_step(
    model: OfficialViT,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    inputs: tuple[Tensor, ...],
    target: Tensor,
) -> tuple[Tensor, Tensor]:
    """One whole step: loss, backward, clip to norm 3, AdamW. Returns (loss, gradient norm).

    `inputs` is `model.inputs(mask)`. The official step reads the loss on the host every time."""
    loss = model.loss(target, images, *inputs)
    if not isinstance(model, TunedViT):
        loss.item()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach(), norm
