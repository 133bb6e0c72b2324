"""The products of a branch's Linears, in the compute dtype or in 8 bits.

    times(x, W, bias)                 x W^T + bias, and the scale of x
    prepared(g, W)                    a gradient as the next two read it
    back(g, W)                        g W
    weight_gradient(g, x, dtype, s)   g^T x; s: the scale that `times` found for x
    in_dtype(x, dtype)                x, rounded where it has another dtype

A weight is a tensor, and then these are the matrix products of `eva_fast.ops.linear`, with
activations and gradients rounded to its dtype where the residual stream has a wider one; or it is an
8-bit one (`Quantised`), and then activations, gradients and weight are quantised with one scale each,
products are summed in float32 and rounded to the compute dtype. Scales are those of the tensors
themselves: see `eva_fast.ops.quantise_fp8`. The backward pass has activations in the compute dtype
again, and quantises them with the scale they had in the forward pass.
"""

import torch
from torch import Tensor

from eva_fast.ops.fp8_gemm import gemm_unchecked
from eva_fast.ops.linear import matmul
from eva_fast.ops.linear import weight_gradient as plain_weight_gradient
from eva_fast.ops.quantise_fp8 import Quantised, quantise_unchecked

FORWARD = GRADIENT = torch.float8_e4m3fn

Weight = Tensor | Quantised


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype`: x itself where it has it, which costs the host less than asking `to`."""
    return x if x.dtype == dtype else x.to(dtype)


def times(
    x: Tensor, weight: Weight, bias: Tensor | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """(x W^T + bias [M, N], the scale of x or None) of x [M, K]. scale: that of x where it is known."""
    if isinstance(weight, Tensor):
        return matmul(in_dtype(x, weight.dtype), weight.t(), bias), None
    q = quantise_unchecked(x, scale, FORWARD, True, False)
    out = gemm_unchecked(q.rows, weight.rows, q.scale, weight.scale, bias, x.dtype, True)
    return out, q.scale


def prepared(g: Tensor, weight: Weight) -> Weight:
    """A gradient [M, N] as `back` and `weight_gradient` read it."""
    if isinstance(weight, Tensor):
        return in_dtype(g, weight.dtype)
    return quantise_unchecked(g, None, GRADIENT, True, True)


def back(g: Weight, weight: Weight, dtype: torch.dtype) -> Tensor:
    """g W [M, K] in `dtype`."""
    if isinstance(g, Tensor):
        assert isinstance(weight, Tensor)
        return matmul(g, weight)
    return gemm_unchecked(g.rows, weight.columns, g.scale, weight.scale, None, dtype, False)  # type: ignore[union-attr]


def weight_gradient(g: Weight, x: Tensor, dtype: torch.dtype, scale: Tensor | None) -> Tensor:
    """g^T x [N, K] in `dtype`, summed in float32."""
    if isinstance(g, Tensor):
        return plain_weight_gradient(g, in_dtype(x, g.dtype), dtype)
    q = quantise_unchecked(x, scale, FORWARD, False, True)
    return gemm_unchecked(g.columns, q.columns, g.scale, q.scale, None, dtype, False)


def part(weight: Weight, start: int, stop: int) -> Weight:
    """The outputs `start` to `stop` of a weight."""
    if isinstance(weight, Tensor):
        return weight[start:stop]
    rows, columns, scale = weight
    return Quantised(rows[start:stop], columns[:, start:stop], scale)


def hold(ctx, *weights: Weight) -> list[Tensor | None]:
    """Keeps weights for the backward: returns what belongs into `save_for_backward`. An 8-bit weight
    is never written again, a new value gets new memory: it can stay with `ctx`."""
    ctx.quantised = tuple(None if isinstance(w, Tensor) else w for w in weights)
    return [w if isinstance(w, Tensor) else None for w in weights]


def held(ctx, *saved: Tensor | None) -> list[Weight]:
    """The weights that `hold` kept, from what was saved for them."""
    return [w if q is None else q for w, q in zip(saved, ctx.quantised)]  # type: ignore[misc]
