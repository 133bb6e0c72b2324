"""C++ kernels of `smooth_l1`: csrc/ops/smooth_l1.h."""

import torch

from eva_fast.ops.native.calls import CODES, KERNELS, at, empty, native_op, row_stride
from eva_fast.ops.smooth_l1 import EPS


@native_op("smooth_l1")
def _forward(p, t, beta):
    rows, width = p.shape
    loss, statistics = torch.empty(()), torch.empty(3, rows)
    KERNELS["smooth_l1"](
        CODES[p.dtype], CODES[t.dtype], rows, width, at(p), row_stride(p), at(t), row_stride(t), EPS,
        beta, at(loss), at(statistics), torch.get_num_threads(),
    )  # fmt: skip
    return loss, statistics


@native_op("smooth_l1_backward")
def _backward(dloss, p, t, statistics, beta):
    rows, width = p.shape
    dp = empty(p, rows, width)
    dloss = dloss.float()
    KERNELS["smooth_l1_backward"](
        CODES[p.dtype], CODES[t.dtype], rows, width, at(p), row_stride(p), at(t), row_stride(t),
        at(statistics), beta, at(dloss), at(dp), torch.get_num_threads(),
    )  # fmt: skip
    return dp
