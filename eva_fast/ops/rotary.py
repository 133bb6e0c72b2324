"""Rotary positions: pairs of values of each head of q and k are turned by the angles of their token.

    a <- a cos - b sin,  b <- b cos + a sin          of each pair (a, b), with its own sin and cos

(Su et al. 2021, RoFormer; images: Heo et al. 2024.) Pairs are neighbours, 2 i and 2 i + 1 (EVA-02), or
stand half a head apart, i and i + d / 2 (DINOv3). The angles are those of the last N tokens; the tokens
before them (CLS, registers) stay as they are. The gradient is the transpose, which goes the other way:

    da <- da cos + db sin',  db <- db cos - da sin   sin' being the sin of b

An implementation gets packed [B, T, 3, H, d] contiguous, of which q and k are changed in place, sin and
cos [N, d] in float32 (float64 of float64) with last stride 1, and the two flags.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eva_fast.ops.checks import check, check_constant, statistics_dtype
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import direct
from eva_fast.ops.registry import define

__all__ = ["Angles", "rotary"]
_NAME = "rotary"


class Angles(NamedTuple):
    """Where a network's tokens stand, as its q and k are turned."""

    sin: Tensor
    """[N, d], float32 or float64, of the last N tokens."""
    cos: Tensor
    halves: bool
    """Whether pairs stand half a head apart, and not side by side."""


def reference(packed: Tensor, sin: Tensor, cos: Tensor, halves: bool = False) -> Tensor:
    """`rotary` in plain, differentiable PyTorch; 16-bit inputs compute in float32."""
    first = packed.shape[1] - sin.shape[0]
    x = packed[:, first:, :2].to(statistics_dtype(packed))
    if halves:
        low, high = x.chunk(2, -1)
        partner = torch.cat((-high, low), -1)
    else:
        partner = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    turned = x * cos.to(x.dtype)[:, None, None] + partner * sin.to(x.dtype)[:, None, None]
    placed = torch.cat((turned.to(packed.dtype), packed[:, first:, 2:]), 2)
    return torch.cat((packed[:, :first], placed), 1)


def _in_place_torch(packed, sin, cos, halves, backward):
    first, half = packed.shape[1] - sin.shape[0], packed.shape[-1] // 2
    places = slice(None, half), slice(half, None)
    if not halves:
        places = slice(0, None, 2), slice(1, None, 2)
    x = packed[:, first:, :2]
    a, b = (x[..., place].to(sin.dtype) for place in places)
    sin_a, sin_b, cos_a, cos_b = (t[:, None, None, p] for t in (sin, cos) for p in places)
    if backward:
        turned = a * cos_a + b * sin_b, b * cos_b - a * sin_a
    else:
        turned = a * cos_a - b * sin_a, b * cos_b + a * sin_b
    for place, value in zip(places, turned, strict=True):
        x[..., place] = value.to(x.dtype)


def _turn(packed: Tensor, sin: Tensor, cos: Tensor, halves: bool, backward: bool) -> Tensor:
    if packed.numel() and sin.numel():
        chosen(OP, packed)(packed, sin, cos, halves, backward)
    return packed


@torch.library.custom_op("eva_fast::rotary", mutates_args=())
def _op(packed: Tensor, sin: Tensor, cos: Tensor, halves: bool, backward: bool) -> Tensor:
    return _turn(packed.clone(memory_format=torch.contiguous_format), sin, cos, halves, backward)


@_op.register_fake
def _(packed, sin, cos, halves, backward):
    return packed.new_empty(packed.shape)


def turned(packed: Tensor, angles: Angles, backward: bool = False) -> Tensor:
    """`rotary` without the checks, for functions that bring their own backward: of a contiguous tensor
    that nobody else holds, in place where that can be. backward: the transpose, of a gradient."""
    return (_turn if direct(packed) else _op)(packed, *angles, backward)


def rotary(packed: Tensor, sin: Tensor, cos: Tensor, halves: bool = False) -> Tensor:
    """packed with q and k of its last N tokens turned, a new tensor.

    packed: [B, T, 3, H, d] = (q, k, v), float32, bfloat16 or float16 (float64 in plain PyTorch), d
    even. sin, cos: [N, d], N <= T, float32 (float64 of float64), constants; each value has its own.
    halves: pairs are (i, i + d / 2), else (2 i, 2 i + 1). Raises ValueError naming what does not fit.
    """
    check(_NAME, "packed", packed, shape=(None, None, 3, None, None))
    if packed.shape[-1] % 2:
        raise ValueError(f"{_NAME}: heads are {packed.shape[-1]} wide, expected an even number")
    for name, table in (("sin", sin), ("cos", cos)):
        check(_NAME, name, table, shape=(sin.shape[0], packed.shape[-1]), like=packed)
        check(_NAME, name, table, dtypes=(statistics_dtype(packed),))
        check_constant(_NAME, name, table)
    if sin.shape[0] > packed.shape[1]:
        raise ValueError(
            f"{_NAME}: sin has {sin.shape[0]} rows, expected at most {packed.shape[1]}, one a token"
        )
    return _op(packed, sin, cos, halves, False)


OP = define(_NAME, part="elementwise", reference=reference, plain=_in_place_torch)
rotary.reference = reference  # type: ignore[attr-defined]


def _setup_context(ctx, inputs, output):
    _, sin, cos, ctx.halves, ctx.transposed = inputs
    ctx.save_for_backward(sin, cos)


def _autograd(ctx, dout):
    return _op(dout, *ctx.saved_tensors, ctx.halves, not ctx.transposed), None, None, None, None


_op.register_autograd(_autograd, setup_context=_setup_context)
