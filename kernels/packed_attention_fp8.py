"""Triton kernels of `packed_attention_fp8`: see eva_fast/ops/packed_attention_fp8.py.

They are those of `packed_attention`: the forward writes its tile of out twice; the kernel of dq, which
reads out for delta, writes it by columns, and both backward kernels leave their largest magnitudes.
"""

import torch

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.attention_tiles import Eight, packed_calls
from eva_fast.kernels.attention_tiles import limits as tile_limits
from eva_fast.kernels.launch import triton_op
from eva_fast.kernels.packed_attention import forward_aot_cases, run_forward
from eva_fast.kernels.packed_attention_backward import run_backward
from eva_fast.kernels.packed_attention_dkv import dkv_aot_cases
from eva_fast.kernels.packed_attention_dq import dq_aot_cases
from eva_fast.kernels.quantise_fp8 import LEAST_CAPABILITY, SHARE, largest_kernel
from eva_fast.kernels.quantise_fp8 import limits as format_limits
from eva_fast.ops.checks import contiguous_like, nothing
from eva_fast.ops.packed_attention_fp8 import FORMAT
from eva_fast.ops.quantise_fp8 import padded


def _limits(case):
    return tile_limits(case) or format_limits(case)


@triton_op("packed_attention_fp8", limits=_limits)
def _forward(packed, scale, out_scale):
    q, k, v = packed.unbind(2)
    eight = Eight(out_scale, torch.empty(q.shape, dtype=FORMAT, device=q.device))
    out, lse = run_forward("attention_fp8_forward", q, k, v, scale, eight=eight)
    return out, eight.out, lse


@triton_op("packed_attention_fp8_backward", limits=_limits)
def _backward(dout, packed, out, lse, scale, out_scale, want_sums):
    q, k, v = packed.unbind(2)
    if out is None:
        out, _ = run_forward("attention_forward", q, k, v, scale)
    batch, tokens, heads, head_dim = q.shape
    rows = batch * tokens
    columns = q.new_empty((heads * head_dim, padded(rows)), dtype=FORMAT)
    columns[:, rows:].zero_()
    dpacked = contiguous_like(packed)
    _, sums, parts = run_backward(
        "attention_fp8", dout, q, k, v, out, lse, scale, *dpacked.unbind(2),
        eight=Eight(out_scale, None, columns),
    )  # fmt: skip
    largest = lse.new_empty(2)
    for i, found in enumerate(parts):
        largest_kernel[(1,)](found, largest[i:], found.shape[0], BLOCK=SHARE, num_warps=8)
    return dpacked, columns, sums() if want_sums else nothing(lse), largest


def aot_cases(shape: AotShape) -> list[AotCase]:
    """The whole sequence, forward and backward."""
    if shape.capability < LEAST_CAPABILITY or not shape.tensor_cores:
        return []
    calls = packed_calls(shape)[:1]
    return [
        *forward_aot_cases(shape, calls, True),
        *dq_aot_cases(shape, calls, True),
        *dkv_aot_cases(shape, calls, True),
    ]
