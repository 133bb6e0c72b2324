"""Swin transformers (V1, and EsViT's) as teachers: the last stage's tokens after the last norm.

Liu et al. 2021; Li et al. 2022 trained the same network without labels. Pre-norm blocks attend in
windows, of which every other block's are shifted, with a table of biases for relative positions. There
is no class token. Names are the official code's (`weights/naming/swin.py`). Tokens lie window after
window, as in the fused student.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.errors import UsageError
from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
from eva_fast.layers.linear import Matrix
from eva_fast.layers.mlp import MlpWeights, mlp_branch
from eva_fast.layers.stream import Stream, as_stream, leaving
from eva_fast.layers.window import Windows, inverse, squares
from eva_fast.ops.add_layer_norm import add_layer_norm
from eva_fast.ops.biased_attention import biased_attention_forward
from eva_fast.ops.checks import statistics_dtype
from eva_fast.ops.linear import linear
from eva_fast.teachers.base import select_patches
from eva_fast.teachers.tower import TowerTeacher

logger = logging.getLogger(__name__)
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """Sizes of a Swin. `windows`: tokens of a window's side in each stage, which its tables are for."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[int, ...]
    mlp_hidden: int
    """Width inside the first stage's MLP; it doubles with the stage's."""
    patch_size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def dim(self) -> int:
        """Channels of the last stage."""
        return self.width << (len(self.depths) - 1)

    @property
    def token_size(self) -> int:
        """Pixels a side of a token of the last stage."""
        return self.patch_size << (len(self.depths) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of the last stage, one window in a network as it was trained."""
        return self.windows[-1], self.windows[-1]

    def stages(self, grid: tuple[int, int]) -> list[Windows]:
        """The windows of each stage for a grid of the last. UsageError where the tables are for
        others."""
        if grid[0] != grid[1]:
            raise UsageError(f"a Swin's map is square, not {grid[0]}x{grid[1]}")
        last = len(self.depths) - 1
        return [
            _windows(grid[0] << (last - s), size, self.windows[0])
            for s, size in enumerate(self.windows)
        ]


def _windows(side: int, size: int, usual: int) -> Windows:
    """Windows of `size`; a stage whose table is for fewer than the `usual` tokens was all one window,
    and knows no larger map."""
    found = Windows.fitting(side, size, shifted=False)
    if found.size != size or (size < usual and side > size):
        raise UsageError(f"its table is for windows of {size}, on a map of {side}x{side} tokens")
    return found


class Attention(nn.Module):
    """Attention in windows; `bias` [H, T, T] is the expanded table."""

    bias: Tensor
    mask: Tensor | None
    order: Tensor | None
    back_order: Tensor | None

    def __init__(self, dim: int, heads: int, windows: Windows) -> None:
        super().__init__()
        self.heads, self.windows = heads, windows
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        rows = (2 * windows.size - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, heads))
        for name in ("bias", "mask", "order", "back_order"):
            self.register_buffer(name, None, persistent=False)

    def settle(self) -> None:
        """Makes what the windows and the loaded table say."""
        windows = self.windows
        table = self.relative_position_bias_table.detach()
        self.bias = table[windows.relative_index()].permute(2, 0, 1).contiguous()
        if windows.shift:
            resting = inverse(Windows(windows.side, windows.size).order())
            self.mask, self.order = windows.mask(), resting[windows.order()]
            self.back_order = inverse(self.order)

    def forward(self, y: Tensor) -> Tensor:
        """The normalised [B, N, C] to the projection without its bias."""
        batch, tokens, dim = y.shape
        wide = statistics_dtype(y)
        y = y if self.order is None else y.index_select(1, self.order)
        qkv = linear(y, self.qkv.weight, self.qkv.bias)
        packed = qkv.view(-1, self.windows.area, 3, self.heads, dim // self.heads)
        mask = None if self.mask is None else self.mask.to(wide)
        scale = (dim // self.heads) ** -0.5
        out = biased_attention_forward(None, packed, self.bias.to(wide), mask, scale)[0]
        out = linear(out.view(batch, tokens, dim), self.proj.weight)
        return out if self.back_order is None else out.index_select(1, self.back_order)


class Mlp(nn.Module):
    """The two layers around the GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)


class Block(nn.Module):
    """Pre-norm block."""

    def __init__(self, dim: int, heads: int, hidden: int, windows: Windows) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.attn = Attention(dim, heads, windows)
        self.norm2 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.mlp = Mlp(dim, hidden)

    def forward(self, stream: Stream) -> Stream:
        norm, mlp = self.norm1, self.mlp
        x, y = add_layer_norm(*stream, norm.weight, norm.bias, norm.eps)[:2]
        weights = MlpWeights(
            norm_weight=self.norm2.weight,
            norm_bias=self.norm2.bias,
            fc1=Matrix(mlp.fc1.weight),
            fc1_bias=mlp.fc1.bias,
            fc2=Matrix(mlp.fc2.weight),
            fc2_bias=mlp.fc2.bias,
            eps=self.norm2.eps,
        )
        stream = mlp_branch(Stream(x, self.attn(y), self.attn.proj.bias), weights)
        return leaving(self, stream)


class PatchMerging(nn.Module):
    """Four tokens side by side, normalised, projected to twice the width of one."""

    order: Tensor

    def __init__(self, dim: int, windows: Windows, following: Windows) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, LAYER_NORM_EPS)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        order = inverse(windows.order())[squares(windows.side)[following.order()]].flatten()
        self.register_buffer("order", order, persistent=False)

    def forward(self, stream: Stream) -> Stream:
        x = stream.added().index_select(1, self.order)
        x = x.view(len(x), -1, self.reduction.in_features)
        y = add_layer_norm(x, None, None, None, self.norm.weight, self.norm.bias, self.norm.eps)[1]
        return Stream(linear(y, self.reduction.weight))


class Stage(nn.Module):
    """Blocks of one width and, but in the last stage, the merge to the next."""

    def __init__(
        self, dim: int, depth: int, heads: int, hidden: int, windows: Windows, following: Windows | None
    ) -> None:  # fmt: skip
        super().__init__()
        moved = Windows.fitting(windows.side, windows.size, shifted=True)
        self.blocks = nn.ModuleList(
            Block(dim, heads, hidden, moved if i % 2 else windows) for i in range(depth)
        )
        self.downsample = None if following is None else PatchMerging(dim, windows, following)

    def forward(self, stream: Stream) -> Stream:
        for block in self.blocks:
            stream = block(stream)
        return stream if self.downsample is None else self.downsample(stream)


class PatchEmbed(nn.Module):
    """The patch convolution's parameters, and the norm behind it."""

    order: Tensor

    def __init__(self, config: SwinConfig, windows: Windows) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)
        self.norm = nn.LayerNorm(config.width, LAYER_NORM_EPS)
        self.register_buffer("order", windows.order(), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        weight = self.proj.weight.flatten(1)
        x = linear(rows.index_select(1, self.order), weight, self.proj.bias)
        return add_layer_norm(x, None, None, None, self.norm.weight, self.norm.bias, self.norm.eps)[
            1
        ]


class SwinTower(nn.Module):
    """Patch rows [B, N, 3 P P] -> [B, tokens of the last stage, C], row-major. No gradients."""

    last_order: Tensor

    def __init__(self, config: SwinConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        stages = config.stages(grid)
        self.patch_embed = PatchEmbed(config, stages[0])
        self.layers = nn.ModuleList(
            Stage(config.width << s, depth, heads, config.mlp_hidden << s, windows, following)
            for s, (depth, heads, windows, following) in enumerate(
                zip(config.depths, config.heads, stages, [*stages[1:], None])
            )
        )
        self.norm = nn.LayerNorm(config.dim, LAYER_NORM_EPS)
        self.register_buffer("last_order", inverse(stages[-1].order()), persistent=False)

    def settle(self) -> None:
        """Call it once the weights are loaded."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.settle()

    def forward(self, rows: Tensor) -> Tensor:
        stream = as_stream(self.patch_embed(rows))
        for stage in self.layers:
            stream = stage(stream)
        y = add_layer_norm(*stream, self.norm.weight, self.norm.bias, self.norm.eps)[1]
        return y.index_select(1, self.last_order)


class SwinTeacher(TowerTeacher):
    """A Swin as a teacher. For a grid that its windows do not fill, it sees images at its own size and
    its features are interpolated."""

    tower: SwinTower

    def __init__(
        self,
        name: str,
        config: SwinConfig,
        state: Mapping[str, Tensor],
        grid: tuple[int, int] | None = None,
        whiten: bool = False,
    ) -> None:
        own = grid or config.grid
        try:
            config.stages(own)
        except UsageError as obstacle:
            own = config.grid
            logger.info(
                "%s: its features on a %s grid are interpolated to %s: %s",
                name,
                own,
                grid,
                obstacle,
            )
        super().__init__(name, config.dim, config, own, whiten, config.token_size)
        self.map = own
        self.grid = grid or own
        self.tower = SwinTower(config, own)
        self.tower.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
        self.tower.settle()

    def image_features(self, images: Tensor, index: Tensor | None) -> Tensor:
        out = self.tower(self.rows(images))
        if self.map != self.grid:
            maps = out.mT.unflatten(2, self.map).float()
            out = F.interpolate(maps, self.grid, mode="bilinear", antialias=True).flatten(2).mT
        return select_patches(out, index)
