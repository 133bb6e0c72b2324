"""Triton kernel of `linear_cross_entropy`: see eva_fast/ops/linear_cross_entropy.py for the maths.

One row of logits a program, held in registers: read once and, where gradients are wanted, written
once.
"""

import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import kernel, row_block, row_warps, triton_op

PER_THREAD = 16
CODES = 8192  # as published, for `aot_cases`


@kernel
@triton.jit
def linear_cross_entropy_rows_kernel(
    p_logits, p_target, p_statistics, s_statistics, factor,
    GRADIENTS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: loss and gradient of one row of logits, in place."""
    row = tl.program_id(0).to(tl.int64)
    o_c = tl.arange(0, BLOCK)
    m_c = o_c < C
    p_row = p_logits + row * C + o_c
    b_x = tl.load(p_row, mask=m_c, other=float("-inf")).to(tl.float32)
    hit = o_c == tl.load(p_target + row)
    most = tl.max(b_x, 0)
    b_e = tl.exp(b_x - most)
    total = tl.sum(b_e, 0)
    tl.store(p_statistics + row, most + tl.log(total))
    tl.store(p_statistics + s_statistics + row, tl.sum(tl.where(hit, b_x, 0.0), 0))
    tl.store(p_statistics + 2 * s_statistics + row, most)
    if GRADIENTS:
        b_g = (b_e * tl.div_rn(1.0, total) - tl.where(hit, 1.0, 0.0)) * factor
        tl.store(p_row, b_g.to(p_logits.dtype.element_ty), mask=m_c)


@triton_op("linear_cross_entropy")
def _rows(logits, target, statistics, factor):
    rows, codes = logits.shape
    linear_cross_entropy_rows_kernel[(rows,)](
        logits, target, statistics, statistics.stride(0), float(factor),
        GRADIENTS=factor != 0, C=codes, BLOCK=row_block(codes), num_warps=row_warps(codes, PER_THREAD),
    )  # fmt: skip


def aot_cases(shape: AotShape) -> list[AotCase]:
    return [
        AotCase(
            linear_cross_entropy_rows_kernel,
            {"p_logits": f"*{shape.dtype}", "p_target": "*i64", "p_statistics": "*fp32",
             "s_statistics": shape.batch * shape.masked, "factor": 0.5},
            {"GRADIENTS": True, "C": CODES, "BLOCK": row_block(CODES)},
            num_warps=row_warps(CODES, PER_THREAD),
            small_tiles=True,  # the target
        )
    ]  # fmt: skip
