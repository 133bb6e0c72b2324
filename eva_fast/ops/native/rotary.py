"""C++ kernel of `rotary`: csrc/ops/rotary.h."""

import torch

from eva_fast.ops.native.calls import CODES, KERNELS, at, native_op


@native_op("rotary")
def _in_place(packed, sin, cos, halves, backward):
    batch, tokens, _, heads, head_dim = packed.shape
    KERNELS["rotary"](
        CODES[packed.dtype], batch, tokens, heads, head_dim, at(packed), len(sin), at(sin),
        sin.stride(0), at(cos), cos.stride(0), int(halves), int(backward), torch.get_num_threads(),
    )  # fmt: skip
