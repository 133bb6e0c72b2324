"""Triton kernels of `smooth_l1`: see eva_fast/ops/smooth_l1.py for the maths.

One row a program in both directions, held in registers: mean, deviation and loss of a row are three
sums over it, and nothing is read twice.
"""

import torch
import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import kernel, row_block, row_warps, triton_op
from eva_fast.ops.smooth_l1 import EPS

PER_THREAD = 16


@kernel
@triton.jit
def smooth_l1_forward_kernel(
    p_p, p_t, p_statistics, s_p, s_t, M, beta,
    EPS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: loss, mean t and 1/deviation of one row."""
    row = tl.program_id(0).to(tl.int64)
    o_c = tl.arange(0, BLOCK)
    m_c = o_c < C
    b_p = tl.load(p_p + row * s_p + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_t = tl.load(p_t + row * s_t + o_c, mask=m_c, other=0.0).to(tl.float32)
    mean = tl.sum(b_t, 0) / C
    centred = tl.where(m_c, b_t - mean, 0.0)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(centred * centred, 0) / C + EPS))
    off = b_p - centred * rstd  # 0 beyond the row
    size = tl.abs(off)
    loss = tl.where(size < beta, 0.5 * off * off / beta, size - 0.5 * beta)
    tl.store(p_statistics + row, tl.sum(loss, 0) / C)
    tl.store(p_statistics + M + row, mean)
    tl.store(p_statistics + 2 * M + row, rstd)


@kernel
@triton.jit
def smooth_l1_backward_kernel(
    p_dloss, p_p, p_t, p_statistics, p_dp, s_p, s_t, M, beta,
    C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: dp of one row."""
    row = tl.program_id(0).to(tl.int64)
    o_c = tl.arange(0, BLOCK)
    m_c = o_c < C
    b_p = tl.load(p_p + row * s_p + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_t = tl.load(p_t + row * s_t + o_c, mask=m_c, other=0.0).to(tl.float32)
    mean = tl.load(p_statistics + M + row)
    off = b_p - (b_t - mean) * tl.load(p_statistics + 2 * M + row)
    # by comparisons, which leave a NaN one
    slope = tl.where(off >= beta, 1.0, tl.where(off <= -beta, -1.0, off / beta))
    factor = tl.div_rn(tl.load(p_dloss), M * 1.0) / C
    tl.store(p_dp + row * C + o_c, (slope * factor).to(p_dp.dtype.element_ty), mask=m_c)


@triton_op("smooth_l1")
def _forward(p, t, beta):
    rows, width = p.shape
    statistics = p.new_empty((3, rows), dtype=torch.float32)
    if rows:
        smooth_l1_forward_kernel[(rows,)](
            p, t, statistics, p.stride(0), t.stride(0), rows, beta,
            EPS=EPS, C=width, BLOCK=row_block(width), num_warps=row_warps(width, PER_THREAD),
        )  # fmt: skip
    return statistics[0].sum() / max(rows, 1), statistics


@triton_op("smooth_l1_backward")
def _backward(dloss, p, t, statistics, beta):
    rows, width = p.shape
    dp = p.new_empty(p.shape)
    if rows:
        smooth_l1_backward_kernel[(rows,)](
            dloss, p, t, statistics, dp, p.stride(0), t.stride(0), rows, beta,
            C=width, BLOCK=row_block(width), num_warps=row_warps(width, PER_THREAD),
        )  # fmt: skip
    return dp


def aot_cases(shape: AotShape) -> list[AotCase]:
    width, element, rows = shape.predict_dim, f"*{shape.dtype}", shape.batch * shape.tokens
    constants = {"C": width, "BLOCK": row_block(width)}
    common = {"p_p": element, "p_t": "*fp32", "p_statistics": "*fp32", "beta": "fp32"}
    common |= {"s_p": width, "s_t": width, "M": rows}
    warps = row_warps(width, PER_THREAD)
    return [
        AotCase(smooth_l1_forward_kernel, common, {"EPS": EPS, **constants}, num_warps=warps),
        AotCase(
            smooth_l1_backward_kernel,
            {**common, "p_dloss": "*fp32", "p_dp": element},
            constants,
            num_warps=warps,
        ),
    ]
