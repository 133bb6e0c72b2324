"""The student as EVA-01's code computes it, in plain PyTorch: what steps are counted and timed against.

LayerNorm goes through a cast to float32, QK^T and softmax are materialised float32 matrices, masked
patches are picked by a boolean index, all tokens go through every block. Parameter names are the
official ones, so a state dict of this, of `TunedViT`, of the student or of EVA-01 loads into all.

Source: EVA (Fang et al., CVPR 2023) and its published code, EVA-01/eva.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.model.sizes import ModelSizes

EPS = 1e-6


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
