"""The products of a branch's Linears, in the compute dtype or in 8 bits.

    known_scales(W, norm, bias)       of x and of what follows x W^T, before either is computed
    times(x, W, bias)                 x W^T + bias, and the scale of x
    prepared(g, W)                    a gradient as the next two read it
    back(g, W)                        g W
    weight_gradient(g, x, dtype, s)   g^T x; s: the scale that `times` found for x
    in_dtype(x, dtype)                x, rounded where it has another dtype

A weight is a tensor, and then these are the matrix products of `eva_fast.ops.linear`, with
activations and gradients rounded to its dtype where the residual stream has a wider one; or it is an
8-bit one (`EightBitWeight`), and then activations, gradients and weight are quantised with one scale
each, products are summed in float32 and rounded to the compute dtype. What a kernel of ours writes
comes in 8 bits already, with a scale that was known before (`eva_fast.ops.branch_scales`,
`eva_fast.ops.bias_gelu_fp8`); what else comes is quantised here, with the scale of the tensor itself
(`eva_fast.ops.quantise_fp8`), from the largest magnitude that its kernel left with it, if one did. The
backward pass forms activations again, with the scale they had.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eva_fast.ops.branch_scales import scales_unchecked
from eva_fast.ops.checks import nothing
from eva_fast.ops.fp8_gemm import gemm_unchecked
from eva_fast.ops.largest import left
from eva_fast.ops.linear import matmul, product
from eva_fast.ops.linear import weight_gradient as plain_weight_gradient
from eva_fast.ops.quantise_fp8 import Quantised, quantise_unchecked

FORMAT = torch.float8_e4m3fn
DTYPE = torch.bfloat16
"""The compute dtype beside which 8-bit products run."""


class EightBitWeight(NamedTuple):
    """A weight [N, K] as scale * q, and how long its rows or columns are."""

    rows: Tensor
    columns: Tensor
    scale: Tensor
    norm: Tensor | None
    """float32 []: the length of its longest row or column, whichever is asked for; None: neither."""


Weight = Tensor | EightBitWeight
Rows = Tensor | Quantised
"""Activations or gradients, [M, N]."""


def in_rows(q: Tensor, scale: Tensor) -> Quantised:
    """What a kernel wrote in 8 bits, [..., N], as `times` reads it."""
    return Quantised(q.view(-1, q.shape[-1]), nothing(q), scale)


def in_columns(q: Tensor, scale: Tensor) -> Quantised:
    """What a kernel wrote in 8 bits, transposed, as `weight_gradient` reads it."""
    return Quantised(nothing(q), q, scale)


def known_scales(
    weight: Weight, norm_weight: Tensor, norm_bias: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Of a norm's output y and of what is no larger than y W^T + bias; None: there are no 8 bits."""
    if isinstance(weight, Tensor):
        return None, None
    return scales_unchecked(norm_weight, norm_bias, weight.norm, bias)


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype`: x itself where it has it, which costs the host less than asking `to`."""
    return x if x.dtype == dtype else x.to(dtype)


def times(
    x: Rows, weight: Weight, bias: Tensor | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """(x W^T + bias, the scale of x or None) of x [..., K]: [..., N], of 8-bit weights as rows [M, N].
    scale: that of x where it is known."""
    if isinstance(weight, Tensor):
        assert isinstance(x, Tensor)
        return product(in_dtype(x, weight.dtype), weight, bias), None
    if isinstance(x, Tensor):
        x = quantise_unchecked(x.reshape(-1, x.shape[-1]), scale, FORMAT, True, False)
    out = gemm_unchecked(x.rows, weight.rows, x.scale, weight.scale, bias, DTYPE, True)
    return out, x.scale


def prepared(g: Rows, weight: Weight, largest: Tensor | None = None) -> Rows:
    """A gradient [..., N] as `back` and `weight_gradient` read it, [M, N]. largest: parts of its largest
    magnitude, where they were not left with it."""
    if not isinstance(g, Tensor):
        return g
    rows = g if g.dim() == 2 else g.reshape(-1, g.shape[-1])
    if isinstance(weight, Tensor):
        return in_dtype(rows, weight.dtype)
    return quantise_unchecked(
        rows, None, FORMAT, True, True, left(g) if largest is None else largest
    )


def back(g: Rows, weight: Weight, dtype: torch.dtype) -> Tensor:
    """g W [M, K] in `dtype`."""
    if isinstance(g, Tensor):
        assert isinstance(weight, Tensor)
        return matmul(g, weight)
    return gemm_unchecked(g.rows, weight.columns, g.scale, weight.scale, None, dtype, False)  # type: ignore[union-attr]


def weight_gradient(g: Rows, x: Rows, dtype: torch.dtype, scale: Tensor | None) -> Tensor:
    """g^T x [N, K] in `dtype`, summed in float32."""
    if isinstance(g, Tensor):
        assert isinstance(x, Tensor)
        return plain_weight_gradient(g, in_dtype(x, g.dtype), dtype)
    q = quantise_unchecked(x, scale, FORMAT, False, True) if isinstance(x, Tensor) else x
    return gemm_unchecked(g.columns, q.columns, g.scale, q.scale, None, dtype, False)


def part(weight: Weight, start: int, stop: int) -> Weight:
    """The outputs `start` to `stop` of a weight."""
    if isinstance(weight, Tensor):
        return weight[start:stop]
    rows, columns, scale, _ = weight
    return EightBitWeight(rows[start:stop], columns[:, start:stop], scale, None)


def hold(ctx, *weights: Weight) -> list[Tensor | None]:
    """Keeps weights for the backward: returns what belongs into `save_for_backward`. An 8-bit weight
    is never written again, a new value gets new memory: it can stay with `ctx`."""
    ctx.quantised = tuple(None if isinstance(w, Tensor) else w for w in weights)
    return [w if isinstance(w, Tensor) else None for w in weights]


def held(ctx, *saved: Tensor | None) -> list[Weight]:
    """The weights that `hold` kept, from what was saved for them."""
    return [w if q is None else q for w, q in zip(saved, ctx.quantised)]  # type: ignore[misc]
