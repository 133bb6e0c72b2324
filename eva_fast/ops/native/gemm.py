"""C++ kernel of `gemm`: csrc/ops/gemm.h."""

import torch
from torch import Tensor

from eva_fast.ops.native.calls import (
    KERNELS,
    at,
    empty,
    float32_vectors,
    native_op,
    vector,
)


def _dense(tensor: Tensor) -> Tensor:
    """The matrix with one stride of 1, as the GEMM takes it."""
    rows, columns = tensor.shape
    if (tensor.stride(1) == 1 or columns == 1) or (tensor.stride(0) == 1 or rows == 1):
        return tensor
    return tensor.contiguous()


def _strides(tensor: Tensor) -> tuple[int, int]:
    """(row, column) strides with a 1 among them; those of a dimension of one are free."""
    row, column = tensor.stride()
    if row != 1 and column != 1:
        return (row, 1) if tensor.shape[1] == 1 else (1, column)
    return row, column


@native_op("gemm", limits=float32_vectors)
def _forward(a, b, bias):
    a, b = _dense(a), _dense(b)
    rows, columns = a.shape[0], b.shape[1]
    out = empty(a, rows, columns)
    bias = vector(bias)
    KERNELS["gemm"](
        rows, columns, a.shape[1], at(a), *_strides(a), at(b), *_strides(b), at(out), columns,
        at(bias), 0, torch.get_num_threads(),
    )  # fmt: skip
    return out
