"""The CLIP image tower and the target EVA takes from it.

Radford et al. 2021: patch convolution without bias, class token, learned positions, `ln_pre`,
pre-norm blocks with QuickGELU x*sigmoid(1.702x) or the exact GELU, `ln_post`, projection. EVA's
target is `ln_post @ proj` of every patch token; the class token is dropped. Names follow OpenAI's
state dict; `weights/naming` brings other libraries' weights to them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.errors import UsageError
from eva_fast.layers.inputs import CLIP_MEAN, CLIP_STD
from eva_fast.layers.stream import Stream
from eva_fast.teachers.base import select_patches
from eva_fast.teachers.clip_fused import block_stream, tower_features
from eva_fast.teachers.tower import TowerTeacher
from eva_fast.weights.resize import resize_positions


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Sizes of a CLIP image tower.

    `grid` is the native one, which the position embedding was trained for; `dim` is the width after
    the projection, None for a tower without one; `activation` is "quick_gelu" or "gelu" (exact).
    """

    width: int
    layers: int
    heads: int
    mlp_hidden: int
    patch_size: int
    grid: tuple[int, int]
    dim: int | None
    activation: str = "quick_gelu"
    eps: float = 1e-5
    ln_pre: bool = True
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise UsageError(f"width {self.width} cannot be split over {self.heads} heads")
        if self.activation not in ("quick_gelu", "gelu"):
            raise UsageError(
                f"a CLIP tower's activation is quick_gelu or gelu, not {self.activation!r}"
            )


class Attention(nn.Module):
    """Multi-head attention with packed qkv and biases; queries may be fewer than the tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, queries: Tensor) -> Tensor:
        """x [B,T,D] gives keys and values, queries [B,K,D] (x itself or some rows) the rest."""
        width = x.shape[-1]
        if queries is x:
            packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
            q, k, v = (self._split(part) for part in packed.split(width, dim=-1))
        else:
            w_q, w_kv = self.in_proj_weight.split((width, 2 * width))
            b_q, b_kv = self.in_proj_bias.split((width, 2 * width))
            q = self._split(F.linear(queries, w_q, b_q))
            k, v = (self._split(p) for p in F.linear(x, w_kv, b_kv).split(width, dim=-1))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B,heads,T,d]


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)
        self.quick = activation == "quick_gelu"

    def forward(self, x: Tensor) -> Tensor:
        h = self.c_fc(x)
        return self.c_proj(h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h))


class Block(nn.Module):
    """Pre-norm residual block. All of it is inside its call, so that it can be sharded by itself."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, config.eps)
        self.attn = Attention(config.width, config.heads)
        self.ln_2 = nn.LayerNorm(config.width, config.eps)
        self.mlp = Mlp(config.width, config.mlp_hidden, config.activation)

    def forward(self, x: Stream, tokens: Tensor | None = None) -> Stream:
        """The fused path; the rows `tokens` int32 [B,K] alone where they are given."""
        return block_stream(self, x, tokens)

    def plain(self, x: Tensor) -> Tensor:
        """[B,T,D] -> [B,T,D]."""
        y = self.ln_1(x)
        x = x + self.attn(y, y)
        return x + self.mlp(self.ln_2(x))

    def patches(self, x: Tensor, index: Tensor | None) -> Tensor:
        """[B,T,D] -> [B,K,D], exactly: all tokens serve as keys and values, only K patches go on."""
        y = self.ln_1(x)
        x = select_patches(x[:, 1:], index)
        x = x + self.attn(y, select_patches(y[:, 1:], index))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """The blocks; the last one computes the wanted patches only."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, x: Tensor, index: Tensor | None) -> Tensor:
        *blocks, last = cast(Iterable[Block], self.resblocks)
        for block in blocks:
            x = block.plain(x)
        return last.patches(x, index)


class ClipTower(nn.Module):
    """images [B,3,h,w] at `patch_size` times `grid` -> [B,K,C] features of K (or all) patches.

    Its `forward` is the plain formulation; a teacher runs `clip_fused.tower_features`.
    """

    def __init__(self, config: ClipConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        width, patch = config.width, config.patch_size
        self.config = config
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + grid[0] * grid[1], width))
        self.ln_pre = nn.LayerNorm(width, config.eps) if config.ln_pre else nn.Identity()
        self.transformer = Transformer(config)
        self.ln_post = nn.LayerNorm(width, config.eps)
        self.proj = nn.Parameter(torch.empty(width, config.dim)) if config.dim else None

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = self.ln_pre(x + self.positional_embedding)
        x = self.ln_post(self.transformer(x, index))
        return x if self.proj is None else x @ self.proj


class ClipTeacher(TowerTeacher):
    """A CLIP image tower as a teacher; the position embedding is interpolated where `grid` is not the
    native one. point: "proj", or "norm" for the features before the projection."""

    tower: ClipTower

    def __init__(
        self,
        name: str,
        config: ClipConfig,
        state: dict[str, Tensor],
        grid: tuple[int, int] | None = None,
        whiten: bool = False,
        point: str = "proj",
        cls: bool = False,
    ) -> None:
        points = self.points if config.dim is None else (point,)
        if point == "norm":
            config = replace(config, dim=None)
            state = {key: value for key, value in state.items() if key != "proj"}
        super().__init__(name, config.dim or config.width, config, grid, whiten)
        self.points, self.cls = points, cls
        state = {key: value.float() for key, value in state.items()}
        state["positional_embedding"] = resize_positions(
            state["positional_embedding"], config.grid, self.grid
        )
        with torch.device("meta"):
            self.tower = ClipTower(config, self.grid)
        self.tower.load_state_dict(state, assign=True)

    def image_features(self, images: Tensor, index: Tensor | None) -> Tensor:
        return tower_features(self.tower, self.rows(images), index, self.cls)
