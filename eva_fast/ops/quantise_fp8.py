"""Quantisation to 8-bit floating point: one scale a tensor, by rows, by columns or both.

    scale = 2^k, the least with max |x| <= scale * largest       largest: 448 (e4m3), 57344 (e5m2)
    q = x / scale, rounded to nearest even                       x ~ scale * q

Formats and the per-tensor scheme: Micikevicius et al. 2022, "FP8 Formats for Deep Learning". The
scale is that of the tensor itself and not of an earlier step: nothing has to be kept, so a resumed
or recomputed step has the same numbers, and no value overflows. A power of two costs no accuracy in
a floating format, and dividing by it is exact: every device gets the same q. Where a value is not
finite the scale is NaN, and so is every product. `largest` is what finding the scale takes: parts of the
largest magnitude, left by whoever wrote x (`eva_fast.ops.largest`), which saves the pass over x.

`columns` is the transpose, for products that contract over the rows; its rows are padded with zeros
to a multiple of 16, as 8-bit products ask for. Nothing waits for the device: the scale stays there.

An implementation gets x [M, K], contiguous, the scale or None, the parts or None; it returns (rows or
empty, columns or empty, scale found or empty).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eva_fast.ops.checks import check, nothing
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import direct
from eva_fast.ops.registry import define

__all__ = ["quantise_fp8"]
_NAME = "quantise_fp8"
MULTIPLE = 16
LARGEST_EXPONENT = {torch.float8_e4m3fn: 8, torch.float8_e5m2: 15}
"""Of the largest value, which is 1.75 times that power of two in both formats."""


class Quantised(NamedTuple):
    """A matrix [M, K] as scale * q."""

    rows: Tensor
    """q [M, K]; empty where it was not wanted."""
    columns: Tensor
    """q^T [K, M padded to a multiple of 16]; empty where it was not wanted."""
    scale: Tensor
    """float32 []."""


def padded(rows: int) -> int:
    """`rows`, or the next multiple of 16."""
    return -(-rows // MULTIPLE) * MULTIPLE


def scale_of(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale, float32 [], of a tensor whose largest magnitude is `largest`, float32 []."""
    # Adding this carries into the exponent where the mantissa is above 1.75.
    field = ((largest.view(torch.int32) + 0x1FFFFF) >> 23) - LARGEST_EXPONENT[dtype]
    scale = (field.clamp(min=1) << 23).view(torch.float32)
    return torch.where(largest.isfinite(), scale, torch.nan)


def reference(
    x: Tensor,
    scale: Tensor | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
    want_rows: bool = True,
    want_columns: bool = True,
    largest: Tensor | None = None,
) -> Quantised:
    """`quantise_fp8` in plain PyTorch."""
    wide = x.float()
    if scale is None:
        parts = wide.abs() if largest is None else largest
        scale = scale_of(parts.amax() if parts.numel() else wide.new_zeros(()), dtype)
    q = (wide / scale).clamp(*(s * torch.finfo(dtype).max for s in (-1, 1))).to(dtype)
    columns = q.new_zeros((x.shape[1], padded(x.shape[0]))) if want_columns else nothing(q)
    if want_columns:
        columns[:, : x.shape[0]] = q.t()
    return Quantised(q if want_rows else nothing(q), columns, scale)


def _torch(x, scale, dtype, want_rows, want_columns, largest):
    rows, columns, found = reference(x, scale, dtype, want_rows, want_columns, largest)
    return rows, columns, found if scale is None else nothing(found)


def _quantise(
    x: Tensor, scale: Tensor | None, dtype: torch.dtype, want_rows: bool, want_columns: bool,
    largest: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return chosen(OP, x)(x, scale, dtype, want_rows, want_columns, largest)


_quantise_op = torch.library.custom_op(f"eva_fast::{_NAME}", mutates_args=())(_quantise)


@_quantise_op.register_fake
def _(x, scale, dtype, want_rows, want_columns, largest=None):
    m, k = x.shape
    rows = x.new_empty((m, k) if want_rows else (0,), dtype=dtype)
    columns = x.new_empty((k, padded(m)) if want_columns else (0,), dtype=dtype)
    return rows, columns, x.new_empty(() if scale is None else (0,), dtype=torch.float32)


def quantise_fp8(
    x: Tensor,
    scale: Tensor | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
    want_rows: bool = True,
    want_columns: bool = True,
    largest: Tensor | None = None,
) -> Quantised:
    """x [M, K], float32, bfloat16 or float16, as a scale times `dtype` (float8_e4m3fn, float8_e5m2).

    scale: float32 [], a power of two that was found for the same values, which saves a pass over x;
    what lies beyond it becomes the largest value. largest: float32 [P], parts of the largest |x|,
    which saves that pass too where there is no scale. Not differentiable. ValueError naming what does
    not fit.
    """
    if x.dim() != 2:
        raise ValueError(f"{_NAME}: x has shape {tuple(x.shape)}, expected 2 dimensions")
    check(_NAME, "x", x, dtypes=(torch.float32, torch.bfloat16, torch.float16))
    if dtype not in LARGEST_EXPONENT:
        raise ValueError(f"{_NAME}: dtype is {dtype}, expected float8_e4m3fn or float8_e5m2")
    if largest is not None:
        check(_NAME, "largest", largest, shape=(None,), dtypes=(torch.float32,), like=x)
    return quantise_unchecked(x.detach(), scale, dtype, want_rows, want_columns, largest)


def quantise_unchecked(x, scale, dtype, want_rows, want_columns, largest=None) -> Quantised:
    """`quantise_fp8` without the checks, for functions that bring their own backward."""
    run = _quantise if direct(x) else _quantise_op
    rows, columns, found = run(x.contiguous(), scale, dtype, want_rows, want_columns, largest)
    return Quantised(rows, columns, found if scale is None else scale)


def _again(x, scale, dtype, want_rows, want_columns, largest=None) -> int:
    """x is read for its scale first."""
    return x.numel() * x.element_size() if scale is None and largest is None else 0


OP = define(_NAME, part="quantise", reference=reference, plain=_torch, again=_again, kernels=2)
quantise_fp8.reference = reference  # type: ignore[attr-defined]
