"""C++ kernels of `bias_gelu`: csrc/ops/bias_gelu.h."""

import torch

from eva_fast.ops.bias_gelu import KINDS
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


@native_op("bias_gelu")
def _forward(h, bias, kind):
    rows, width = h.shape
    out = empty(h, rows, width)
    bias = vector(bias)
    KERNELS["bias_gelu"](
        CODES[h.dtype], KINDS.index(kind), rows, width, at(h), row_stride(h), at(bias),
        at(out), torch.get_num_threads(),
    )  # fmt: skip
    return out


@native_op("bias_gelu_backward")
def _backward(dg, h, bias, kind, want_g, want_bias):
    rows, width = h.shape
    dh = empty(h, rows, width)
    g = empty(h, rows, width) if want_g else None
    dbias = torch.empty(width) if want_bias else None
    dtype = h.dtype if bias is None else bias.dtype
    bias = vector(bias)
    KERNELS["bias_gelu_backward"](
        CODES[h.dtype], KINDS.index(kind), rows, width, at(dg), row_stride(dg), at(h),
        row_stride(h), at(bias), at(dh), at(g), at(dbias), torch.get_num_threads(),
    )  # fmt: skip
    return (
        dh,
        g if g is not None else nothing(h),
        dbias.to(dtype) if dbias is not None else torch.empty(0, dtype=dtype),
    )
