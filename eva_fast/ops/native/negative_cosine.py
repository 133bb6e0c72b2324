"""C++ kernels of `negative_cosine`: csrc/ops/negative_cosine.h."""

import torch

from eva_fast.ops.native.calls import CODES, KERNELS, at, empty, native_op, row_stride
from eva_fast.ops.negative_cosine import EPS


@native_op("negative_cosine")
def _forward(p, t):
    rows, width = p.shape
    loss, statistics = torch.empty(()), torch.empty(3, rows)
    KERNELS["negative_cosine"](
        CODES[p.dtype], CODES[t.dtype], rows, width, at(p), row_stride(p), at(t), row_stride(t), EPS,
        at(loss), at(statistics), torch.get_num_threads(),
    )  # fmt: skip
    return loss, statistics


@native_op("negative_cosine_backward")
def _backward(dloss, p, t, statistics):
    rows, width = p.shape
    dp = empty(p, rows, width)
    dloss = dloss.float()
    KERNELS["negative_cosine_backward"](
        CODES[p.dtype], CODES[t.dtype], rows, width, at(p), row_stride(p), at(t), row_stride(t),
        at(statistics), EPS, at(dloss), at(dp), torch.get_num_threads(),
    )  # fmt: skip
    return dp
