"""Triton kernel of `largest_row_norm`: see eva_fast/ops/largest_row_norm.py for the maths.

A program walks along BLOCK_M rows, the lengths in registers; the largest of all programs is taken as
that of the bits of a float, which order like integers and put what is not finite on top.
"""

import torch
import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import cdiv, kernel, triton_op
from eva_fast.kernels.quantise_fp8 import LEAST_CAPABILITY, limits
from eva_fast.ops.quantise_fp8 import padded

BLOCK_M, BLOCK_K = 8, 512
BLOCK_P = 1024


@kernel
@triton.jit
def squares_kernel(
    p_q, p_partials, s_q, M, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr
):
    """One program: BLOCK_M rows; the bits of the largest sum of their squares."""
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)
    o_k = tl.arange(0, BLOCK_K)
    b_sum = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for start in range(0, K, BLOCK_K):
        m_q = (o_m[:, None] < M) & (start + o_k[None, :] < K)
        b_q = tl.load(p_q + o_m[:, None] * s_q + start + o_k[None, :], mask=m_q, other=0.0)
        b_q = b_q.to(tl.float32)
        b_sum += b_q * b_q
    b_bits = tl.sum(b_sum, 1).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    tl.store(p_partials + tl.program_id(0), tl.max(b_bits, 0))


@kernel
@triton.jit
def longest_kernel(p_partials, p_scale, p_norm, programs, BLOCK_P: tl.constexpr):
    """One program: the root of the largest of all, times the scale."""
    b_most = tl.zeros([BLOCK_P], tl.int32)
    for start in range(0, programs, BLOCK_P):
        o_p = start + tl.arange(0, BLOCK_P)
        b_most = tl.maximum(b_most, tl.load(p_partials + o_p, mask=o_p < programs, other=0))
    square = tl.max(b_most, 0).to(tl.float32, bitcast=True)
    tl.store(p_norm, tl.sqrt_rn(square) * tl.load(p_scale))


@triton_op("largest_row_norm", limits=limits)
def _norm(q, scale):
    m, k = q.shape
    programs = max(1, cdiv(m, BLOCK_M))
    partials = scale.new_empty(programs, dtype=torch.int32)
    norm = torch.empty_like(scale)
    squares_kernel[(programs,)](
        q, partials, q.stride(0), m, K=k, BLOCK_M=BLOCK_M, BLOCK_K=BLOCK_K, num_warps=4
    )
    longest_kernel[(1,)](partials, scale, norm, programs, BLOCK_P=BLOCK_P, num_warps=4)
    return norm


def aot_cases(shape: AotShape) -> list[AotCase]:
    """The rows of a gradient."""
    if shape.capability < LEAST_CAPABILITY:
        return []
    m, k = padded(shape.batch * shape.tokens), shape.width
    return [
        AotCase(
            squares_kernel,
            {"p_q": "*fp8e4nv", "p_partials": "*i32", "s_q": k, "M": m},
            {"K": k, "BLOCK_M": BLOCK_M, "BLOCK_K": BLOCK_K},
        ),
        AotCase(
            longest_kernel,
            {"p_partials": "*i32", "p_scale": "*fp32", "p_norm": "*fp32", "programs": m // 8},
            {"BLOCK_P": BLOCK_P},
        ),
    ]
