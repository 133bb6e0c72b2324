"""C++ kernels of `add_layer_norm`: csrc/ops/add_layer_norm.h."""

import torch

from eva_fast.ops.checks import nothing
from eva_fast.ops.native.calls import (
    CODES,
    KERNELS,
    at,
    empty,
    native_op,
    row_stride,
    vector,
)


@native_op("add_layer_norm")
def _forward(x, branch, branch_bias, scale, weight, bias, eps):
    rows, width = x.shape[:-1].numel(), x.shape[-1]
    total = empty(x, *x.shape) if branch is not None else None
    y = empty(x, *x.shape)
    mean, rstd = torch.empty(rows), torch.empty(rows)
    branch_bias, weight, bias = vector(branch_bias), vector(weight), vector(bias)
    scale = vector(scale)
    KERNELS["add_layer_norm"](
        CODES[x.dtype], rows, width, at(x), row_stride(x), at(branch), row_stride(branch),
        at(branch_bias), at(scale), rows // len(scale) if scale is not None else 1, at(weight),
        at(bias), eps, at(total), at(y), at(mean), at(rstd),
        torch.get_num_threads(),
    )  # fmt: skip
    return total if total is not None else nothing(x), y, mean, rstd


@native_op("add_layer_norm_backward")
def _backward(dy, dresidual, total, mean, rstd, weight, bias, scale, want_y, want_branch_bias):
    rows, width = dy.shape[:-1].numel(), dy.shape[-1]
    dx = empty(dy, *dy.shape)
    dbranch = empty(dy, *dy.shape) if scale is not None else None
    y = empty(dy, *dy.shape) if want_y else None
    sums = torch.empty(3 if want_branch_bias else 2, width)
    dtype = weight.dtype
    weight, bias, scale = vector(weight), vector(bias), vector(scale)
    KERNELS["add_layer_norm_backward"](
        CODES[dy.dtype], rows, width, at(dy), row_stride(dy), at(dresidual), row_stride(dresidual),
        at(total), row_stride(total), at(mean), at(rstd), at(weight), at(bias), at(scale),
        rows // len(scale) if scale is not None else 1, at(dx), at(dbranch), at(y), at(sums),
        int(want_branch_bias), torch.get_num_threads(),
    )  # fmt: skip
    dweight, dbias, *rest = (row.to(dtype, copy=True) for row in sums)
    return (
        dx,
        dbranch if dbranch is not None else nothing(dy),
        y if y is not None else nothing(dy),
        dweight,
        dbias,
        rest[0] if rest else nothing(dbias),
    )
