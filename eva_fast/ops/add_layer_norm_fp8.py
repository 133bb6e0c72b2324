"""`add_layer_norm` that writes the norm in 8 bits, for the 8-bit product behind it.

    x' = x + s (branch + c),  q = LN(x') / y_scale in e4m3, rounded once, from float32

The scale is known before the norm is (`branch_scales`), so no pass finds it and none quantises. For the
gradient of the product's weight, which sums over the rows, the backward gives the transpose of q from
what it has at hand, x' and the row statistics. The gradient that it writes for the branch before is
quantised next: it leaves parts of its largest magnitude (`eva_fast.ops.largest`).

An implementation gets what one of `add_layer_norm` gets, with the scale in place of want_y; parts of
the largest magnitude are float32 [P], one a row but at most `PARTS`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eva_fast.ops.add_layer_norm import _backward_torch as plain_backward
from eva_fast.ops.add_layer_norm import _check, _forward_torch
from eva_fast.ops.checks import as_shaped, check, dense_rows, nothing, rows, statistics_dtype
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import direct
from eva_fast.ops.largest import PARTS
from eva_fast.ops.quantise_fp8 import padded
from eva_fast.ops.quantise_fp8 import reference as quantise
from eva_fast.ops.registry import define

__all__ = ["add_layer_norm_fp8", "add_layer_norm_fp8_backward"]
_NAME = "add_layer_norm_fp8"
FORMAT = torch.float8_e4m3fn


def reference(
    x: Tensor,
    branch: Tensor | None,
    branch_bias: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    y_scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`add_layer_norm_fp8` in plain PyTorch."""
    total, _, mean, rstd = _forward_torch(x, branch, branch_bias, scale, weight, bias, eps)
    source = rows(total if branch is not None else x)
    return total, _eight_bits(source, mean, rstd, weight, bias, y_scale).view(x.shape), mean, rstd


def _backward_torch(
    dy, dresidual, total, mean, rstd, weight, bias, scale, y_scale, want_branch_bias
):
    dx, dbranch, _, *sums = plain_backward(
        dy, dresidual, total, mean, rstd, weight, bias, scale, False, want_branch_bias
    )
    q = _eight_bits(rows(total), mean, rstd, weight, bias, y_scale)
    columns = q.new_zeros((q.shape[1], padded(q.shape[0])))
    columns[:, : q.shape[0]] = q.t()
    largest = mean.new_empty(min(mean.shape[0], PARTS))
    if largest.numel():
        largest.copy_((dx if scale is None else dbranch).abs().amax())
    return dx, dbranch, columns, *sums, largest


def _eight_bits(total, mean, rstd, weight, bias, y_scale) -> Tensor:
    y = (total.float() - mean[:, None]) * rstd[:, None] * weight.float() + bias.float()
    return quantise(y, y_scale, FORMAT, True, False).rows


def _forward(
    x: Tensor,
    branch: Tensor | None,
    branch_bias: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    y_scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total, y, mean, rstd = chosen(OP, x)(
        *dense_rows(x, branch), branch_bias, scale, weight, bias, eps, y_scale
    )
    return as_shaped(total, x) if branch is not None else total, as_shaped(y, x), mean, rstd


_forward_op = torch.library.custom_op(f"eva_fast::{_NAME}", mutates_args=())(_forward)


@_forward_op.register_fake
def _(x, branch, branch_bias, scale, weight, bias, eps, y_scale):
    total = x.new_empty(x.shape) if branch is not None else nothing(x)
    statistics = x.new_empty((x.shape[:-1].numel(),), dtype=statistics_dtype(x))
    return total, x.new_empty(x.shape, dtype=FORMAT), statistics, torch.empty_like(statistics)


def _backward(
    dy: Tensor,
    dresidual: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    y_scale: Tensor,
    want_branch_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, dbranch, *rest = chosen(BACKWARD, dy)(
        *dense_rows(dy, dresidual, total),
        *(mean, rstd, weight, bias, scale, y_scale, want_branch_bias),
    )
    return as_shaped(dx, dy), as_shaped(dbranch, dy) if scale is not None else dbranch, *rest


_backward_op = torch.library.custom_op(f"eva_fast::{_NAME}_backward", mutates_args=())(_backward)


@_backward_op.register_fake
def _(dy, dresidual, total, mean, rstd, weight, bias, scale, y_scale, want_branch_bias):
    dx, (width,) = dy.new_empty(dy.shape), weight.shape
    return (
        dx,
        torch.empty_like(dx) if scale is not None else nothing(dx),
        dy.new_empty((width, padded(dy.shape[:-1].numel())), dtype=FORMAT),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        torch.empty_like(bias, memory_format=torch.contiguous_format),
        weight.new_empty(weight.shape) if want_branch_bias else nothing(weight),
        mean.new_empty((min(mean.shape[0], PARTS),)),
    )


def add_layer_norm_fp8(
    x: Tensor,
    branch: Tensor | None,
    branch_bias: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    y_scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x', LayerNorm(x') / y_scale as float8_e4m3fn, mean, rstd); else as `add_layer_norm`.

    x, branch: float32, bfloat16 or float16. y_scale: float32 [], a power of two; what lies beyond it
    becomes the largest value. Not differentiable. ValueError naming what does not fit.
    """
    _check(x, branch, branch_bias, scale, weight, bias)
    _check_scale(x, y_scale)
    with torch.no_grad():
        return add_layer_norm_fp8_unchecked(
            x, branch, branch_bias, scale, weight, bias, eps, y_scale
        )


class NormGradients(NamedTuple):
    """What `add_layer_norm_fp8_backward` gives; what was not wanted is empty."""

    dx: Tensor
    dbranch: Tensor
    """dx itself where there is no scale."""
    y: Tensor
    """The transpose of what the forward wrote, [D, M padded with zeros to a multiple of 16]."""
    dweight: Tensor
    dbias: Tensor
    dbranch_bias: Tensor
    largest: Tensor
    """Float32 [P], parts of the largest magnitude of dbranch."""


def add_layer_norm_fp8_backward(
    dy: Tensor,
    dresidual: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    y_scale: Tensor,
    want_branch_bias: bool = False,
) -> NormGradients:
    """Gradients as of `add_layer_norm_backward`, and y once more, in 8 bits.

    dy, dresidual, total: [..., D], or None for a dresidual of zero; mean, rstd: float32 [M] of the
    forward, y_scale float32 [] its scale. ValueError naming what does not fit.
    """
    check(_NAME, "dy", dy, shape=(*total.shape[:-1], weight.shape[0]), dtypes=(total.dtype,))
    if dresidual is not None:
        check(_NAME, "dresidual", dresidual, shape=dy.shape, dtypes=(dy.dtype,), like=dy)
    count = (total.shape[:-1].numel(),)
    check(_NAME, "mean", mean, shape=count, dtypes=(torch.float32,), like=dy)
    check(_NAME, "rstd", rstd, shape=count, dtypes=(torch.float32,), like=dy)
    _check_scale(dy, y_scale)
    with torch.no_grad():
        return norm_backward_unchecked(
            dy, dresidual, total, mean, rstd, weight, bias, scale, y_scale, want_branch_bias
        )


def _check_scale(x: Tensor, y_scale: Tensor) -> None:
    check(_NAME, "y_scale", y_scale, shape=(), dtypes=(torch.float32,), like=x)


def add_layer_norm_fp8_unchecked(x, branch, branch_bias, scale, weight, bias, eps, y_scale):
    """`add_layer_norm_fp8` without the checks, for functions that bring their own backward."""
    run = _forward if direct(x) else _forward_op
    total, y, mean, rstd = run(x, branch, branch_bias, scale, weight, bias, eps, y_scale)
    return total if branch is not None else x, y, mean, rstd


def norm_backward_unchecked(
    dy, dresidual, total, mean, rstd, weight, bias, scale, y_scale, want_branch_bias
) -> NormGradients:
    """`add_layer_norm_fp8_backward` without the checks."""
    run = _backward if direct(dy) else _backward_op
    dx, dbranch, *rest = run(
        dy, dresidual, total, mean, rstd, weight, bias, scale, y_scale, want_branch_bias
    )
    return NormGradients(dx, dbranch if scale is not None else dx, *rest)


def _again(dy, dresidual, total, *_, **__) -> int:
    """x' is read by rows and, for the columns, in tiles."""
    return total.numel() * total.element_size()


OP = define(_NAME, part="norm", reference=reference, plain=reference)
BACKWARD = define(
    f"{_NAME}_backward", part="norm", kernels=3, plain=_backward_torch, again=_again,
    backward_of=OP,
)  # fmt: skip
add_layer_norm_fp8.reference = reference  # type: ignore[attr-defined]
