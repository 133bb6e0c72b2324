"""Plain vision transformers as teachers: DINOv2, SigLIP, ViT, an EVA student.

Dosovitskiy et al. 2021; registers (Darcet et al. 2024) and LayerScale (Touvron et al. 2021) where the
weights have them. Features are the patch tokens after the last norm. `weights/naming/vit.py` brings the
files of all libraries to the names here. The tower runs on the fused layers; what costs nothing to fold
is folded when the weights are read: LayerScale into the matrices before it, the class token's position
into the class token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.errors import UsageError
from eva_fast.layers.attention import AttentionWeights, attention_branch
from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD, take_rows
from eva_fast.layers.linear import Matrix
from eva_fast.layers.mlp import MlpWeights, mlp_branch
from eva_fast.layers.stream import Stream, leaving
from eva_fast.ops.add_layer_norm import add_layer_norm
from eva_fast.ops.linear import linear
from eva_fast.teachers.tower import TowerTeacher
from eva_fast.weights.resize import resize_positions

PREFIX = ("cls_token", "reg_token")
"""Tokens in front of the patches, in this order; [1,n,D]."""
GELUS = {"gelu": "erf", "gelu_tanh": "tanh", "quick_gelu": "quick"}
"""What `bias_gelu` calls them."""
ACTIVATIONS = (*GELUS, "swiglu")


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """Sizes of a vision transformer. `grid` is the native one, which the positions were trained for;
    `prefix` counts class and register tokens; `mlp_hidden` is the width that fc2 reads, of which
    "swiglu" (silu of one half of fc1 times the other, Shazeer 2020) makes fc1 twice as wide."""

    width: int
    layers: int
    heads: int
    mlp_hidden: int
    patch_size: int
    grid: tuple[int, int]
    prefix: int
    activation: str = "gelu"
    last_norm: bool = True
    """Whether all tokens are normalised at the end: not where a mean of them is (`fc_norm`)."""
    eps: float = 1e-6
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise UsageError(f"width {self.width} cannot be split over {self.heads} heads")
        if self.activation not in ACTIVATIONS:
            raise UsageError(
                f"a vision transformer's activation is {', '.join(ACTIVATIONS)}, not "
                f"{self.activation!r}"
            )


class PatchEmbed(nn.Module):
    """The patch convolution's parameters."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)


class Attention(nn.Module):
    """Packed query, key and value, and the projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)


class Mlp(nn.Module):
    """The two layers around the activation."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.mlp_hidden
        self.fc1 = nn.Linear(width, 2 * hidden if config.activation == "swiglu" else hidden)
        self.fc2 = nn.Linear(hidden, width)


class Block(nn.Module):
    """Pre-norm block, without LayerScale. All of it is inside its call, so that it can be sharded by
    itself."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.activation = config.heads, config.activation
        self.norm1 = nn.LayerNorm(width, config.eps)
        self.attn = Attention(width)
        self.norm2 = nn.LayerNorm(width, config.eps)
        self.mlp = Mlp(config)

    def forward(
        self, stream: Stream, attend: Callable[[Block, Stream], Stream] | None = None
    ) -> Stream:
        """The stream after it. attend: in place of `attention`, of some rows."""
        stream = self.attention(stream) if attend is None else attend(self, stream)
        return leaving(self, self.feed_forward(stream))

    def attention(self, stream: Stream, tokens: Tensor | None = None) -> Stream:
        """The attention branch, of the rows `tokens` int32 [B,K] alone where they are given."""
        qkv, proj = self.attn.qkv, self.attn.proj
        weights = AttentionWeights(
            norm_weight=self.norm1.weight,
            norm_bias=self.norm1.bias,
            qkv=Matrix(qkv.weight),
            q_bias=None,
            v_bias=None,
            packed_bias=qkv.bias,
            proj=Matrix(proj.weight),
            proj_bias=proj.bias,
            num_heads=self.heads,
            eps=self.norm1.eps,
        )
        return attention_branch(stream, weights, tokens)

    def feed_forward(self, stream: Stream) -> Stream:
        """The MLP branch."""
        fc1, fc2, norm = self.mlp.fc1, self.mlp.fc2, self.norm2
        if self.activation == "swiglu":
            x, y = add_layer_norm(*stream, norm.weight, norm.bias, norm.eps)[:2]
            gate, value = linear(y, fc1.weight, fc1.bias).chunk(2, -1)
            return Stream(x, linear(F.silu(gate) * value, fc2.weight), fc2.bias)
        weights = MlpWeights(
            norm_weight=norm.weight,
            norm_bias=norm.bias,
            fc1=Matrix(fc1.weight),
            fc1_bias=fc1.bias,
            fc2=Matrix(fc2.weight),
            fc2_bias=fc2.bias,
            eps=norm.eps,
            kind=GELUS[self.activation],
        )
        return mlp_branch(stream, weights)


class VitTower(nn.Module):
    """Patch rows [B,N,3 P P] -> [B,K,C] features of K (or all) patches of a grid; `with_cls`: of the
    first token and of all patches. No gradients."""

    def __init__(self, config: VitConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embed = PatchEmbed(config)
        self.prefix = nn.Parameter(torch.empty(config.prefix, width))
        self.positions = nn.Parameter(torch.empty(grid[0] * grid[1], width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width, config.eps) if config.last_norm else None

    def forward(self, rows: Tensor, index: Tensor | None = None, with_cls: bool = False) -> Tensor:
        conv = self.patch_embed.proj
        patches = linear(rows, conv.weight.flatten(1), conv.bias) + self.positions
        x = torch.cat([self.prefix.expand(len(rows), -1, -1), patches], 1)
        stream = Stream(x)
        *blocks, last = self.blocks
        for block in blocks:
            stream = block(stream)
        prefix = self.config.prefix
        attend = partial(_wanted, index=index, prefix=prefix, with_cls=with_cls)
        stream = cast(Stream, last(stream, attend))
        if self.norm is None:
            return stream.added()
        return add_layer_norm(*stream, self.norm.weight, self.norm.bias, self.norm.eps)[1]


class VitTeacher(TowerTeacher):
    """A vision transformer as a teacher; positions are interpolated where `grid` is not the native
    one."""

    tower: VitTower

    def __init__(
        self,
        name: str,
        config: VitConfig,
        state: Mapping[str, Tensor],
        grid: tuple[int, int] | None = None,
        whiten: bool = False,
        cls: bool = False,
    ) -> None:
        super().__init__(name, config.width, config, grid, whiten)
        self.cls = cls
        if cls and "cls_token" not in state:
            raise UsageError(f"teacher {name!r} has no CLS token")
        with torch.device("meta"):
            self.tower = VitTower(config, self.grid)
        self.tower.load_state_dict(folded(state, config, self.grid), assign=True)

    def image_features(self, images: Tensor, index: Tensor | None) -> Tensor:
        return self.tower(self.rows(images), index, self.cls)


def folded(
    state: Mapping[str, Tensor], config: VitConfig, grid: tuple[int, int]
) -> dict[str, Tensor]:
    """The tower's tensors in float32 for a grid, out of a file's under timm's names. What the file
    lacks is lacking here too, and names that nobody knows are kept."""
    out = {name: value.float() for name, value in state.items()}
    positions = out.pop("pos_embed")[0]
    tokens = [out.pop(name)[0] for name in PREFIX if name in out]
    prefix = torch.cat([*tokens, positions.new_empty(0, config.width)])
    # Positions of the tokens in front, or of the first of them, may lie in front of the patches'.
    extra = len(positions) - config.grid[0] * config.grid[1]
    out["prefix"] = torch.cat([prefix[:extra] + positions[:extra], prefix[extra:]])
    out["positions"] = resize_positions(positions[extra:], config.grid, grid)
    for name in [name for name in out if name.endswith(".gamma")]:
        layer = name.replace("ls1.gamma", "attn.proj").replace("ls2.gamma", "mlp.fc2")
        weight, bias, scale = out.get(layer + ".weight"), out.get(layer + ".bias"), out[name]
        if weight is None or bias is None or not weight.shape[:1] == bias.shape == scale.shape:
            continue  # seen as unknown by whoever compares
        del out[name]
        out[layer + ".weight"] = scale[:, None] * weight
        out[layer + ".bias"] = scale * bias
    return out


def _wanted(
    block: Block, stream: Stream, index: Tensor | None, prefix: int, with_cls: bool
) -> Stream:
    """The last attention, of the patches index [B,K] or of all, then with the first token too where
    `with_cls`. The op that asks for some rows alone needs a token in front of the patches; without one
    all are computed and some go on."""
    batch, tokens = stream.x.shape[:2]
    if index is None:
        rows = torch.arange(prefix - with_cls, tokens, dtype=torch.int32, device=stream.x.device)
        if with_cls:
            rows[0] = 0  # registers stand between the class token and the patches
        rows = rows.repeat(batch, 1)
    else:
        rows = index.to(torch.int32) + prefix
    if prefix:
        return block.attention(stream, rows)
    x, branch, bias, _ = block.attention(stream)
    if index is None:
        return Stream(x, branch, bias)
    assert branch is not None
    return Stream(take_rows(x, rows), take_rows(branch, rows), bias)
