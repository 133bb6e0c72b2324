"""What flows through the blocks: a residual stream and a branch that is yet to be added to it."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eva_fast.layers.sharding import is_sharded
from eva_fast.ops.checks import statistics_dtype
from eva_fast.ops.graphs import on_device
from eva_fast.world import world

Scales = tuple[Tensor | None, Tensor | None]
"""Drop-path's factors of a block's attention and MLP, float32 [B] each; None: 1."""


class Stream(NamedTuple):
    """A residual stream and a branch that is yet to be added: x + scale (branch + bias)."""

    x: Tensor
    """[B, T, D], the residual before the addition."""
    branch: Tensor | None = None
    """[B, T, D], or None: nothing to add."""
    bias: Tensor | None = None
    """[D], the bias of the branch's last GEMM."""
    scale: Tensor | None = None
    """float32 [B], drop-path's factor of each sample; None: 1."""

    def added(self) -> Tensor:
        """The sum in plain PyTorch, rounded once, for whoever wants it without the next norm."""
        x, branch, bias, scale = self
        if branch is None:
            return x
        compute = statistics_dtype(x)
        update = branch.to(compute)
        if bias is not None:
            update = update + bias.to(compute)
        if scale is not None:
            update = update * scale.to(compute)[:, None, None]
        return (x.to(compute) + update).to(x.dtype)


def as_stream(x: Stream | Tensor) -> Stream:
    """Tokens [B, T, D] as a stream with nothing pending."""
    return Stream(x) if isinstance(x, Tensor) else x


def drop_path_scale(rate: float, training: bool, x: Tensor) -> Tensor | None:
    """Per-sample factor of a residual branch, float32 [B]: 0 with probability `rate`, else
    1/(1-rate). None where nothing is dropped (Huang et al. 2016, scaled as in timm)."""
    if rate == 0.0 or not training:
        return None
    keep = 1 - rate
    drawn, own = _drawn_for(x.shape[0])
    factors = torch.empty(drawn, device=x.device, dtype=torch.float32)
    if torch.compiler.is_compiling():
        # bernoulli_ would make the rate a constant of the graph, and each block another graph
        return torch.rand_like(factors).lt(keep).to(factors.dtype)[own] / keep
    return factors.bernoulli_(keep).div_(keep)[own]


def _drawn_for(samples: int) -> tuple[int, slice]:
    """For how many samples to draw, and which are this process's: all processes of a run draw for the
    whole batch, so that it is the same however many they are."""
    to = world()
    return to.size * samples, slice(to.rank * samples, (to.rank + 1) * samples)


def drop_path_scales(rates: Sequence[float], x: Tensor) -> list[Scales]:
    """`drop_path_scale` of both branches of all blocks, [rates], by one draw: on a GPU a draw of a few
    numbers costs as much as one of all."""
    drawn, own = _drawn_for(x.shape[0])
    keep = _keeps(tuple(rates), x.device)
    shape = 2 * len(rates), -(-drawn // 4) * 4  # rows of whole 16 bytes
    draw = torch.rand(shape, device=x.device, dtype=torch.float32)
    factors = draw.lt_(keep).div_(keep)[:, own].unbind(0)
    return [
        (factors[2 * i], factors[2 * i + 1]) if rate else (None, None)
        for i, rate in enumerate(rates)
    ]


@functools.cache
def _keeps(rates: tuple[float, ...], device: torch.device) -> Tensor:
    """float32 [2 rates, 1]: what each branch keeps."""
    shares = torch.tensor([[1 - rate] for rate in rates for _ in range(2)], dtype=torch.float32)
    return on_device(shares, device)


def leaving(unit: nn.Module, stream: Stream) -> Stream:
    """The stream as it leaves `unit`. Its pending bias is a parameter of the unit: where FSDP2 takes
    the unit's memory back after the forward, the bias leaves as a copy."""
    if is_sharded(unit) and stream.bias is not None:
        return stream._replace(bias=stream.bias.clone())
    return stream
