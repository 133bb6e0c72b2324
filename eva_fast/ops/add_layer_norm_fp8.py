"""`add_layer_norm` that writes the norm in 8 bits, for the 8-bit product behind it.

    x' = x + s (branch + c),  q = LN(x') / y_scale in e4m3, rounded once, from float32

The scale is known before the norm is (`branch_scales`), so no pass finds it and none quantises. For the
gradient of the product's weight, which sums over the rows, `normed_columns` gives the transpose of q
from what the backward has at hand, x' and the row statistics.

An implementation gets what one of `add_layer_norm` gets, and the scale; for the columns x' as [M, D],
contiguous.
"""

import torch
from torch import Tensor

from eva_fast.ops.add_layer_norm import _check, _forward_torch
from eva_fast.ops.checks import as_shaped, check, dense_rows, nothing, rows, statistics_dtype
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import direct
from eva_fast.ops.quantise_fp8 import padded
from eva_fast.ops.quantise_fp8 import reference as quantise
from eva_fast.ops.registry import define

__all__ = ["add_layer_norm_fp8", "normed_columns_fp8"]
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


def reference_columns(
    total: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, y_scale: Tensor
) -> Tensor:
    """`normed_columns_fp8` in plain PyTorch."""
    q = _eight_bits(total, mean, rstd, weight, bias, y_scale)
    columns = q.new_zeros((q.shape[1], padded(q.shape[0])))
    columns[:, : q.shape[0]] = q.t()
    return columns


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


def _columns(
    total: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, y_scale: Tensor
) -> Tensor:
    return chosen(COLUMNS, total)(total, mean, rstd, weight, bias, y_scale)


_columns_op = torch.library.custom_op(f"eva_fast::{_NAME}_backward", mutates_args=())(_columns)


@_columns_op.register_fake
def _(total, mean, rstd, weight, bias, y_scale):
    return total.new_empty((total.shape[1], padded(total.shape[0])), dtype=FORMAT)


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


def normed_columns_fp8(
    total: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, y_scale: Tensor
) -> Tensor:
    """The transpose of what `add_layer_norm_fp8` wrote, [D, M padded with zeros to a multiple of 16].

    total: x' [M, D]; mean, rstd: float32 [M]; weight, bias: [D]. ValueError naming what does not fit.
    """
    check(_NAME, "total", total, shape=(None, weight.shape[0]))
    check(_NAME, "mean", mean, shape=total.shape[:1], dtypes=(torch.float32,), like=total)
    check(_NAME, "rstd", rstd, shape=total.shape[:1], dtypes=(torch.float32,), like=total)
    _check_scale(total, y_scale)
    with torch.no_grad():
        return normed_columns_unchecked(total, mean, rstd, weight, bias, y_scale)


def _check_scale(x: Tensor, y_scale: Tensor) -> None:
    check(_NAME, "y_scale", y_scale, shape=(), dtypes=(torch.float32,), like=x)


def add_layer_norm_fp8_unchecked(x, branch, branch_bias, scale, weight, bias, eps, y_scale):
    """`add_layer_norm_fp8` without the checks, for functions that bring their own backward."""
    run = _forward if direct(x) else _forward_op
    total, y, mean, rstd = run(x, branch, branch_bias, scale, weight, bias, eps, y_scale)
    return total if branch is not None else x, y, mean, rstd


def normed_columns_unchecked(total, mean, rstd, weight, bias, y_scale) -> Tensor:
    """`normed_columns_fp8` without the checks."""
    run = _columns if direct(total) else _columns_op
    return run(total.contiguous(), mean, rstd, weight, bias, y_scale)


OP = define(_NAME, part="norm", reference=reference, plain=reference)
COLUMNS = define(f"{_NAME}_backward", part="norm", plain=reference_columns, backward_of=OP)
add_layer_norm_fp8.reference = reference  # type: ignore[attr-defined]
