"""Triton kernels of `masked_cosine_head`: see eva_fast/ops/masked_cosine_head.py for the maths.

"fused": the product of `layer_norm_project`, whose tiles of predictions stay in registers and
leave three sums a row and tile: p.t, p.p and t.t. A second kernel adds the tiles' sums. Splitting
the columns over programs fills the GPU (3,360 rows are 53 tiles, an H100 has 132 multiprocessors).
"composed": gather and norm, the library's GEMM, the row kernel of `negative_cosine`.
Both save the same three scalars a row; the backward rebuilds the rows with the library's GEMMs.
"""

import torch
import triton
import triton.language as tl

from eva_fast.kernels.aot_case import DTYPE_BYTES, AotCase, AotShape
from eva_fast.kernels.gather_norm import gather_norm, row_offsets, rows_of, strides_of
from eva_fast.kernels.launch import cdiv, kernel, triton_op
from eva_fast.kernels.layer_norm_project import (
    normalised_product,
    product_args,
    product_config,
    project_backward,
)
from eva_fast.ops.negative_cosine import (
    EPS,
    negative_cosine_backward,
    negative_cosine_forward,
)

ROWS = 128  # rows a program of the second kernel adds up


@kernel
@triton.jit
def masked_cosine_kernel(
    p_x, p_mask, p_w, p_c, p_weight, p_bias, p_target, p_mean, p_rstd, p_sums, M, K, s_image, s_row,
    s_target, D: tl.constexpr, C: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """One program: p.t, p.p, t.t over BN columns of BM rows -> sums [columns, 3, M]."""
    columns = tl.cdiv(C, BN)
    column = tl.program_id(0) % columns
    o_m = tl.program_id(0) // columns * BM + tl.arange(0, BM)
    o_n = column * BN + tl.arange(0, BN)
    m_m = o_m < M
    o_rows = row_offsets(o_m, p_mask, m_m, K, s_image, s_row, HAS_MASK)
    acc = normalised_product(p_x, p_w, p_c, p_weight, p_mean, p_rstd, o_rows, o_m, m_m, o_n, D, C,
                             BM, BN, BK)  # fmt: skip
    acc += tl.load(p_bias + o_n, mask=o_n < C, other=0.0).to(tl.float32)[None, :]
    p_tile = p_target + o_m[:, None].to(tl.int64) * s_target + o_n[None, :]
    b_t = tl.load(p_tile, mask=m_m[:, None] & (o_n < C)[None, :], other=0.0).to(tl.float32)
    p_row = p_sums + column.to(tl.int64) * (3 * M) + o_m
    tl.store(p_row, tl.sum(acc * b_t, 1), mask=m_m)
    tl.store(p_row + M, tl.sum(acc * acc, 1), mask=m_m)
    tl.store(p_row + 2 * M, tl.sum(b_t * b_t, 1), mask=m_m)


@kernel
@triton.jit
def cosine_statistics_kernel(
    p_sums, p_statistics, M, columns, EPS: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: cosine, 1/|p| and 1/|t| of BLOCK rows from their tiles' sums."""
    o_m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_m = o_m < M
    b_pt = tl.zeros([BLOCK], tl.float32)
    b_pp = tl.zeros([BLOCK], tl.float32)
    b_tt = tl.zeros([BLOCK], tl.float32)
    for column in range(0, columns):
        p_row = p_sums + column * (3 * M) + o_m
        b_pt += tl.load(p_row, mask=m_m, other=0.0)
        b_pp += tl.load(p_row + M, mask=m_m, other=0.0)
        b_tt += tl.load(p_row + 2 * M, mask=m_m, other=0.0)
    norm_p = tl.maximum(tl.sqrt_rn(b_pp), EPS)
    norm_t = tl.maximum(tl.sqrt_rn(b_tt), EPS)
    tl.store(p_statistics + o_m, tl.div_rn(b_pt, norm_p * norm_t), mask=m_m)
    tl.store(p_statistics + M + o_m, tl.div_rn(1.0, norm_p), mask=m_m)
    tl.store(p_statistics + 2 * M + o_m, tl.div_rn(1.0, norm_t), mask=m_m)


@triton_op("masked_cosine_head", "fused")
def _fused_forward(x, mask, ln_w, ln_b, weight, bias, target, eps):
    """(loss, statistics [3, M]); no gathered, normalised or predicted row reaches memory."""
    rows, predict = rows_of(x, mask), weight.shape[0]
    statistics = x.new_empty((3, rows), dtype=torch.float32)
    if rows:
        _, mean, rstd = gather_norm(x, mask, ln_w, ln_b, eps, write=False)
        config = product_config(x.shape[-1], predict, x.element_size())
        columns = cdiv(predict, config["BN"])
        sums = x.new_empty((columns, 3, rows), dtype=torch.float32)
        masked_cosine_kernel[(cdiv(rows, config["BM"]) * columns,)](
            x, mask, ln_w, ln_b, weight, bias, target, mean, rstd, sums, rows,
            1 if mask is None else mask.shape[1], *strides_of(x), target.stride(0),
            D=x.shape[-1], C=predict, HAS_MASK=mask is not None, **config,
        )  # fmt: skip
        cosine_statistics_kernel[(cdiv(rows, ROWS),)](
            sums, statistics, rows, columns, EPS=EPS, BLOCK=ROWS, num_warps=4
        )
    return statistics[0].sum() / -max(rows, 1), statistics


@triton_op("masked_cosine_head", "composed")
def _composed_forward(x, mask, ln_w, ln_b, weight, bias, target, eps):
    """The same through memory: faster where the GEMM dominates and the library's is much better."""
    y, _, _ = gather_norm(x, mask, ln_w, ln_b, eps, write=True)
    return negative_cosine_forward(torch.addmm(bias, y, weight.t()), target)


@triton_op("masked_cosine_head_backward")
def _backward(dloss, x, mask, ln_w, ln_b, weight, bias, target, statistics, eps):
    y, mean, rstd = gather_norm(x, mask, ln_w, ln_b, eps, write=True)
    p = torch.addmm(bias, y, weight.t())
    dp = negative_cosine_backward(dloss, p, target, statistics)
    return project_backward(dp, y, x, mask, ln_w, weight, mean, rstd)


def aot_cases(shape: AotShape) -> list[AotCase]:
    config = product_config(shape.width, shape.predict_dim, DTYPE_BYTES[shape.dtype])
    columns = cdiv(shape.predict_dim, config["BN"])
    warps, stages = config.pop("num_warps"), config.pop("num_stages")
    args = product_args(shape) | {
        "p_target": f"*{shape.dtype}", "s_target": shape.predict_dim, "p_sums": "*fp32",
        "p_statistics": "*fp32", "columns": columns,
    }  # fmt: skip
    constants = {"D": shape.width, "C": shape.predict_dim, **config}
    return [
        *(  # the op on all tokens, and on the rows that a trimmed last block leaves
            AotCase(
                masked_cosine_kernel,
                args,
                constants | {"HAS_MASK": mask},
                warps,
                stages,
                shape.tensor_cores,
            )
            for mask in (True, False)
        ),
        AotCase(cosine_statistics_kernel, args, {"EPS": EPS, "BLOCK": ROWS}),
    ]
