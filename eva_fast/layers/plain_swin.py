"""Swin V2's stages in plain PyTorch: the reference of `swin`, and what kernels="torch" runs.

Names and arguments are the fused layers'; tokens stay in row-major order.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD, normalise
from eva_fast.layers.plain import LayerNorm, add_branch
from eva_fast.layers.recompute import run_branches
from eva_fast.layers.stream import drop_path_scale
from eva_fast.layers.swin import LAYER_NORM_EPS
from eva_fast.layers.unit_heads import gain
from eva_fast.layers.window import Windows, register_constants, squares
from eva_fast.layers.window_attention import position_mlp, position_table


class PatchEmbed(nn.Module):
    """Patch convolution and norm: [B, 3, H, W] -> [B, N, D]."""

    def __init__(self, patch_size: int, embed_dim: int, windows: Windows):
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, patch_size, patch_size)
        self.norm = LayerNorm(embed_dim, eps=LAYER_NORM_EPS)

    def forward(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        pixels = normalise(images, dtype, IMAGENET_MEAN, IMAGENET_STD)
        return self.norm(self.proj(pixels).flatten(2).mT)


class WindowAttention(nn.Module):
    """Cosine attention in the windows of a map, [B, N, C] -> [B, N, C]."""

    relative_index: Tensor
    mask: Tensor | None

    def __init__(self, dim: int, num_heads: int, windows: Windows):
        super().__init__()
        self.windows = windows
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        self.rpe_mlp = position_mlp(num_heads)
        self.proj = nn.Linear(dim, dim)
        register_constants(
            self, relative_index=windows.relative_index(), log_offsets=windows.log_offsets(),
            mask=windows.mask(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        w = self.windows
        batch, tokens, dim = x.shape
        across, shift = w.side // w.size, (w.shift, w.shift)
        x = x.view(batch, w.side, w.side, dim).roll((-w.shift, -w.shift), (1, 2))
        x = x.view(batch, across, w.size, across, w.size, dim).transpose(2, 3)
        out = self._attend(x.reshape(-1, w.area, dim))
        out = out.view(batch, across, across, w.size, w.size, dim).transpose(2, 3)
        out = out.reshape(batch, w.side, w.side, dim).roll(shift, (1, 2))
        return out.view(batch, tokens, dim)

    def _attend(self, x: Tensor) -> Tensor:
        """Windows [B W, T, C], those of an image one after the other."""
        windows, tokens, dim = x.shape
        heads = self.logit_scale.shape[0]
        qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, qkv_bias.to(self.qkv.weight.dtype))
        q, k, v = qkv.view(windows, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        with torch.autocast(x.device.type, enabled=False):
            bias = position_table(self)[self.relative_index].permute(2, 0, 1)
            q, k = (F.normalize(t.to(bias.dtype), dim=-1) for t in (q, k))
            scores = q @ k.mT * gain(self.logit_scale)[:, None, None] + bias
            if self.mask is not None:
                by_image = scores.unflatten(0, (-1, self.windows.count))
                scores = (by_image + self.mask.to(bias.dtype)[:, None]).flatten(0, 1)
            p = scores.softmax(-1).to(v.dtype)
        return self.proj((p @ v).transpose(1, 2).reshape(windows, tokens, dim))


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + drop_path(norm1(attn(x))), then x + drop_path(norm2(mlp(x)))."""

    def __init__(self, dim: int, num_heads: int, hidden: int, drop_path: float, windows: Windows):
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = WindowAttention(dim, num_heads, windows)
        self.norm2 = LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, hidden)
        self.drop_path = drop_path
        self.recompute = False

    def forward(self, x: Tensor) -> Tensor:
        scales = [drop_path_scale(self.drop_path, self.training, x) for _ in range(2)]
        return run_branches(self, self._branches, *scales, x)

    def _branches(self, attn_scale: Tensor | None, mlp_scale: Tensor | None, x: Tensor) -> Tensor:
        x = add_branch(x, self.norm1(self.attn(x)), attn_scale)
        return add_branch(x, self.norm2(self.mlp(x)), mlp_scale)


class PatchMerging(nn.Module):
    """[B, N, C] to [B, N/4, 2C]."""

    order: Tensor

    def __init__(self, dim: int, windows: Windows, following: Windows):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = LayerNorm(2 * dim, eps=LAYER_NORM_EPS)
        register_constants(self, order=squares(windows.side).flatten())

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        x = x[:, self.order].view(batch, tokens // 4, 4 * dim)
        return self.norm(self.reduction(x))


class RowMajor(nn.Identity):
    """The order in which tokens are already."""
