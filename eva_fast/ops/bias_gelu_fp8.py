"""`bias_gelu` that writes 8 bits, forward and backward, for the 8-bit products beside it.

    q = gelu(h + b) / g_scale in e4m3, rounded once, from float32
    dh = dg gelu'(h + b):  |dh| <= 1.13 |dg|,  |dg_mf| <= |row m of dr| |column f of W|
    dh_scale: the least power of two that holds 1.14 (largest row of dr) (largest column of W) in e4m3

The scale of g is known before it is computed (`branch_scales`). That of dh comes from the product that
gave dg = dr W: no value can be larger, by Cauchy-Schwarz, and what dh is in a step is some 2^4 below
(the lengths of ViT-g's rows), which costs e4m3 range and no digit. So the backward writes what the next
three products read in one pass over dg and h: dh by rows and by columns, g again by columns, and
db = sum dh, of dh before it is rounded to 8 bits.

An implementation gets h, dg as [M, F] rows with last stride 1, bias [F], the rest as in the custom op;
and returns contiguous tensors.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eva_fast.ops.bias_gelu import KINDS
from eva_fast.ops.bias_gelu import _backward_torch as plain_backward
from eva_fast.ops.bias_gelu import reference as plain_gelu
from eva_fast.ops.checks import as_shaped, check, dense_last, rows
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import direct
from eva_fast.ops.quantise_fp8 import Quantised, padded, scale_of
from eva_fast.ops.quantise_fp8 import reference as quantise
from eva_fast.ops.registry import define

__all__ = ["bias_gelu_fp8", "bias_gelu_fp8_backward"]
_NAME = "bias_gelu_fp8"
FORMAT = torch.float8_e4m3fn
STEEPEST = 1.14
"""The largest slope of the GELUs is 1.129 (erf, tanh) and 1.100 (quick); dg is rounded to bfloat16."""


class GeluGradients(NamedTuple):
    """What `bias_gelu_fp8_backward` gives."""

    dh: Quantised
    """By rows [M, F] and by columns [F, M padded to a multiple of 16]."""
    g: Tensor
    """gelu(h + b) / g_scale by columns."""
    dbias: Tensor
    """[F], in the dtype of the bias."""


def reference(h: Tensor, bias: Tensor, kind: str, g_scale: Tensor) -> Tensor:
    """`bias_gelu_fp8` in plain PyTorch."""
    g = plain_gelu(rows(h).float(), bias, kind)
    return quantise(g, g_scale, FORMAT, True, False).rows.view(h.shape)


def _backward_torch(dg, h, bias, kind, g_scale, row_norm, column_norm):
    dh, g, dbias = plain_backward(dg.float(), h.float(), bias, kind, True, True)
    dh_scale = scale_of(row_norm * column_norm * STEEPEST, FORMAT)
    dh_rows, dh_columns, _ = quantise(dh, dh_scale, FORMAT)
    g_columns = quantise(g, g_scale, FORMAT, False, True).columns
    return dh_rows, dh_columns, dh_scale, g_columns, dbias


def _forward(h: Tensor, bias: Tensor, kind: str, g_scale: Tensor) -> Tensor:
    return as_shaped(chosen(OP, h)(rows(h), bias, kind, g_scale), h)


_forward_op = torch.library.custom_op(f"eva_fast::{_NAME}", mutates_args=())(_forward)


@_forward_op.register_fake
def _(h, bias, kind, g_scale):
    return h.new_empty(h.shape, dtype=FORMAT)


def _backward(
    dg: Tensor,
    h: Tensor,
    bias: Tensor,
    kind: str,
    g_scale: Tensor,
    row_norm: Tensor,
    column_norm: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    implementation = chosen(BACKWARD, h)
    return implementation(rows(dg), rows(h), bias, kind, g_scale, row_norm, column_norm)


_backward_op = torch.library.custom_op(f"eva_fast::{_NAME}_backward", mutates_args=())(_backward)


@_backward_op.register_fake
def _(dg, h, bias, kind, g_scale, row_norm, column_norm):
    width, count = h.shape[-1], h.shape[:-1].numel()
    columns = h.new_empty((width, padded(count)), dtype=FORMAT)
    return (
        h.new_empty((count, width), dtype=FORMAT),
        columns,
        g_scale.new_empty(()),
        torch.empty_like(columns),
        bias.new_empty((width,)),
    )


def bias_gelu_fp8(h: Tensor, bias: Tensor, kind: str, g_scale: Tensor) -> Tensor:
    """gelu(h + bias) / g_scale as float8_e4m3fn, of h [..., F], float32, bfloat16 or float16.

    bias: [F]; kind: as of `bias_gelu`; g_scale: float32 [], a power of two; what lies beyond it becomes
    the largest value. Not differentiable. ValueError naming what does not fit.
    """
    _check(h, bias, kind, g_scale)
    return gelu_unchecked(h.detach(), bias.detach(), kind, g_scale)


def bias_gelu_fp8_backward(
    dg: Tensor,
    h: Tensor,
    bias: Tensor,
    kind: str,
    g_scale: Tensor,
    row_norm: Tensor,
    column_norm: Tensor,
) -> GeluGradients:
    """From dg = dr W, the gradient of gelu(h + bias): all that the next products read.

    dg, h: [..., F] of one dtype. row_norm, column_norm: float32 [], the lengths of dr's longest row
    and of W's longest column, quantised as they were multiplied (`largest_row_norm`).
    """
    _check(h, bias, kind, g_scale)
    check(_NAME, "dg", dg, shape=h.shape, dtypes=(h.dtype,), like=h)
    for name, norm in (("row_norm", row_norm), ("column_norm", column_norm)):
        check(_NAME, name, norm, shape=(), dtypes=(torch.float32,), like=h)
    return gelu_backward_unchecked(
        dg.detach(), h.detach(), bias.detach(), kind, g_scale, row_norm, column_norm
    )


def gelu_unchecked(h, bias, kind, g_scale) -> Tensor:
    """`bias_gelu_fp8` without the checks, for functions that bring their own backward."""
    return (_forward if direct(h) else _forward_op)(h, bias, kind, g_scale)


def gelu_backward_unchecked(dg, h, bias, kind, g_scale, row_norm, column_norm) -> GeluGradients:
    """`bias_gelu_fp8_backward` without the checks."""
    run = _backward if direct(dg) else _backward_op
    dh_rows, dh_columns, dh_scale, g, dbias = run(
        dense_last(dg), h, bias, kind, g_scale, row_norm, column_norm
    )
    return GeluGradients(Quantised(dh_rows, dh_columns, dh_scale), g, dbias)


def _check(h, bias, kind, g_scale) -> None:
    check(_NAME, "h", h, dtypes=(torch.float32, torch.bfloat16, torch.float16))
    check(_NAME, "bias", bias, shape=h.shape[-1:], like=h)
    check(_NAME, "g_scale", g_scale, shape=(), dtypes=(torch.float32,), like=h)
    if kind not in KINDS:
        raise ValueError(f"{_NAME}: kind is {kind!r}, expected one of {', '.join(KINDS)}")


OP = define(_NAME, part="gelu", reference=reference, plain=reference)
BACKWARD = define(
    f"{_NAME}_backward", part="gelu", kernels=2, plain=_backward_torch, backward_of=OP
)
bias_gelu_fp8.reference = reference  # type: ignore[attr-defined]
