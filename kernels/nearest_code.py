"""Triton kernels of `nearest_code`: see eva_fast/ops/nearest_code.py for the maths.

One kernel has a tile of rows meet all codes, tile by tile, and keeps the best product and its code in
registers. The other has a tile of codes look for its rows among all: a product with the one-hot tile
adds them in the same order in every run, and tiles without any, most of them, are passed over. All
products are of full float32.
"""

import torch
import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import cdiv, kernel, row_block, triton_op
from eva_fast.ops.checks import nothing
from eva_fast.ops.registry import Case

ROWS, CODES = 32, 64  # of a tile of products
SUM_CODES, SUM_ROWS = 32, 64  # of a one-hot tile
WIDEST = 64
CODEBOOK, CODE_WIDTH = 8192, 32  # as published, for `aot_cases`


@kernel
@triton.jit
def nearest_code_kernel(
    p_z, p_w, p_index, s_z, s_w, M, C,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: the codes of BLOCK_M rows."""
    o_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    m_m, m_d = o_m < M, o_d < D
    p_rows = p_z + o_m[:, None] * s_z + o_d[None, :]
    b_z = tl.load(p_rows, mask=m_m[:, None] & m_d[None, :], other=0.0)  # [BLOCK_M, BLOCK_D]
    b_best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_index = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, C, BLOCK_C):
        o_c = start + tl.arange(0, BLOCK_C)
        m_c = o_c < C
        p_codes = p_w + o_c.to(tl.int64)[:, None] * s_w + o_d[None, :]
        b_w = tl.load(p_codes, mask=m_c[:, None] & m_d[None, :], other=0.0)  # [BLOCK_C, BLOCK_D]
        b_p = tl.dot(b_z, tl.trans(b_w), input_precision="ieee")  # [BLOCK_M, BLOCK_C]
        b_p = tl.where(m_c[None, :], b_p, float("-inf"))
        b_most, b_where = tl.max(b_p, 1, return_indices=True, return_indices_tie_break_left=True)
        better = b_most > b_best
        b_best = tl.where(better, b_most, b_best)
        b_index = tl.where(better, start + b_where, b_index)
    tl.store(p_index + o_m, b_index.to(tl.int64), mask=m_m)


@kernel
@triton.jit
def code_sums_kernel(
    p_z, p_index, p_counts, p_sums, s_z, M, C,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One program: counts and sums of BLOCK_C codes."""
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    o_d = tl.arange(0, BLOCK_D)
    m_c, m_d = o_c < C, o_d < D
    b_counts = tl.zeros([BLOCK_C], tl.float32)
    b_sums = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
    for start in range(0, M, BLOCK_M):
        o_m = start + tl.arange(0, BLOCK_M)
        m_m = o_m < M
        b_index = tl.load(p_index + o_m, mask=m_m, other=-1).to(tl.int32)
        hit = o_c[:, None] == b_index[None, :]  # [BLOCK_C, BLOCK_M]
        if tl.max(tl.max(hit.to(tl.int32), 1), 0) > 0:
            p_rows = p_z + o_m.to(tl.int64)[:, None] * s_z + o_d[None, :]
            b_z = tl.load(p_rows, mask=m_m[:, None] & m_d[None, :], other=0.0)
            one_hot = hit.to(tl.float32)
            b_counts += tl.sum(one_hot, 1)
            b_sums += tl.dot(one_hot, b_z, input_precision="ieee")
    tl.store(p_counts + o_c, b_counts, mask=m_c)
    p_out = p_sums + o_c.to(tl.int64)[:, None] * D + o_d[None, :]
    tl.store(p_out, b_sums, mask=m_c[:, None] & m_d[None, :])


def _limits(case: Case) -> str | None:
    if case.dtype != torch.float32:
        return "takes float32"
    wide = bool(case.sizes) and case.sizes[0] > WIDEST
    return f"takes codes of at most {WIDEST} numbers" if wide else None


@triton_op("nearest_code", limits=_limits)
def _forward(z, codebook, want_sums):
    (rows, width), codes = z.shape, len(codebook)
    index = z.new_empty(rows, dtype=torch.int64)
    block = row_block(width)
    if rows:
        nearest_code_kernel[(cdiv(rows, ROWS),)](
            z, codebook, index, z.stride(0), codebook.stride(0), rows, codes,
            D=width, BLOCK_D=block, BLOCK_M=ROWS, BLOCK_C=CODES, num_warps=4,
        )  # fmt: skip
    if not want_sums:
        return index, nothing(z), nothing(z)
    counts, sums = z.new_empty(codes), z.new_empty((codes, width))
    code_sums_kernel[(cdiv(codes, SUM_CODES),)](
        z, index, counts, sums, z.stride(0), rows, codes,
        D=width, BLOCK_D=block, BLOCK_C=SUM_CODES, BLOCK_M=SUM_ROWS, num_warps=4,
    )  # fmt: skip
    return index, counts, sums


def aot_cases(shape: AotShape) -> list[AotCase]:
    common = {"p_z": "*fp32", "p_index": "*i64", "s_z": CODE_WIDTH, "C": CODEBOOK}
    common["M"] = shape.batch * shape.grid**2
    constants = {"D": CODE_WIDTH, "BLOCK_D": row_block(CODE_WIDTH)}
    return [
        AotCase(
            nearest_code_kernel,
            {**common, "p_w": "*fp32", "s_w": CODE_WIDTH},
            {**constants, "BLOCK_M": ROWS, "BLOCK_C": CODES},
        ),
        AotCase(
            code_sums_kernel,
            {**common, "p_counts": "*fp32", "p_sums": "*fp32"},
            {**constants, "BLOCK_C": SUM_CODES, "BLOCK_M": SUM_ROWS},
            small_tiles=True,
        ),
    ]
