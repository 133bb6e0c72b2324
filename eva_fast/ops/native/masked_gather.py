"""C++ kernels of `masked_gather`, which copy rows as bytes: csrc/ops/masked_gather.h."""

import torch

from eva_fast.ops.native.calls import KERNELS, at, check_indices, empty, native_op


@native_op("masked_gather")
def _forward(x, mask):
    batch, count = mask.shape
    check_indices("masked_gather", mask, x.shape[1] - 1, lowest=-1)
    out = empty(x, batch * count, x.shape[2])
    size = x.element_size()
    KERNELS["masked_gather"](
        batch, count, size * x.shape[2], at(x), size * x.stride(0), size * x.stride(1),
        at(mask), at(out), torch.get_num_threads(),
    )  # fmt: skip
    return out


@native_op("masked_gather_backward")
def _backward(dout, mask, tokens):
    batch, count = mask.shape
    check_indices("masked_gather", mask, tokens - 1, lowest=-1)
    dx = empty(dout, batch, tokens, dout.shape[1])
    size = dout.element_size()
    KERNELS["masked_gather_backward"](
        batch, tokens, count, size * dout.shape[1], at(dout), size * dout.stride(0), at(mask),
        at(dx), torch.get_num_threads(),
    )  # fmt: skip
    return dx
