"""Triton kernels of `negative_cosine`: see eva_fast/ops/negative_cosine.py for the maths.

One row a program in both directions, held in registers by one or two warps: a row of a few hundred
values needs no more, and one warp adds up without a barrier.
"""

import torch
import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import kernel, row_block, row_warps, triton_op
from eva_fast.ops.negative_cosine import EPS

PER_THREAD = 16


@kernel
@triton.jit
def negative_cosine_forward_kernel(
    p_p, p_t, p_statistics, s_p, s_t, M, EPS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: cosine, 1/|p| and 1/|t| of one row."""
    row = tl.program_id(0).to(tl.int64)
    o_c = tl.arange(0, BLOCK)
    m_c = o_c < C
    b_p = tl.load(p_p + row * s_p + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_t = tl.load(p_t + row * s_t + o_c, mask=m_c, other=0.0).to(tl.float32)
    norm_p = tl.maximum(tl.sqrt_rn(tl.sum(b_p * b_p, 0)), EPS)
    norm_t = tl.maximum(tl.sqrt_rn(tl.sum(b_t * b_t, 0)), EPS)
    # one division of the product of norms: two roundings fewer than by their inverses
    tl.store(p_statistics + row, tl.div_rn(tl.sum(b_p * b_t, 0), norm_p * norm_t))
    tl.store(p_statistics + M + row, tl.div_rn(1.0, norm_p))
    tl.store(p_statistics + 2 * M + row, tl.div_rn(1.0, norm_t))


@kernel
@triton.jit
def negative_cosine_backward_kernel(
    p_dloss, p_p, p_t, p_statistics, p_dp, s_p, s_t, M,
    EPS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: dp of one row."""
    row = tl.program_id(0).to(tl.int64)
    o_c = tl.arange(0, BLOCK)
    m_c = o_c < C
    b_p = tl.load(p_p + row * s_p + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_t = tl.load(p_t + row * s_t + o_c, mask=m_c, other=0.0).to(tl.float32)
    cosine = tl.load(p_statistics + row)
    inverse_p = tl.load(p_statistics + M + row)
    inverse_t = tl.load(p_statistics + 2 * M + row)
    # a row of norm below EPS is divided by the constant EPS: no part along p
    along = tl.where(inverse_p < 1.0 / EPS, cosine * inverse_p * inverse_p, 0.0)
    b_dp = (b_p * along - b_t * (inverse_p * inverse_t)) * tl.div_rn(tl.load(p_dloss), M * 1.0)
    tl.store(p_dp + row * C + o_c, b_dp.to(p_dp.dtype.element_ty), mask=m_c)


@triton_op("negative_cosine")
def _forward(p, t):
    rows, width = p.shape
    statistics = p.new_empty((3, rows), dtype=torch.float32)
    if rows:
        negative_cosine_forward_kernel[(rows,)](
            p, t, statistics, p.stride(0), t.stride(0), rows,
            EPS=EPS, C=width, BLOCK=row_block(width), num_warps=row_warps(width, PER_THREAD),
        )  # fmt: skip
    return statistics[0].sum() / -max(rows, 1), statistics


@triton_op("negative_cosine_backward")
def _backward(dloss, p, t, statistics):
    rows, width = p.shape
    dp = p.new_empty(p.shape)
    if rows:
        negative_cosine_backward_kernel[(rows,)](
            dloss, p, t, statistics, dp, p.stride(0), t.stride(0), rows,
            EPS=EPS, C=width, BLOCK=row_block(width), num_warps=row_warps(width, PER_THREAD),
        )  # fmt: skip
    return dp


def aot_cases(shape: AotShape) -> list[AotCase]:
    width, element, rows = shape.predict_dim, f"*{shape.dtype}", shape.batch * shape.masked
    constants = {"EPS": EPS, "C": width, "BLOCK": row_block(width)}
    common = {"p_p": element, "p_t": element, "p_statistics": "*fp32"}
    common |= {"s_p": width, "s_t": width, "M": rows}
    warps = row_warps(width, PER_THREAD)
    return [
        AotCase(negative_cosine_forward_kernel, common, constants, num_warps=warps),
        AotCase(
            negative_cosine_backward_kernel,
            {**common, "p_dloss": "*fp32", "p_dp": element},
            constants,
            num_warps=warps,
        ),
    ]
