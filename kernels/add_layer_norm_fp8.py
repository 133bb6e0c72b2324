"""Triton kernels of `add_layer_norm_fp8`: see eva_fast/ops/add_layer_norm_fp8.py for the maths.

The forward is the kernel of `add_layer_norm`, which divides by the scale and rounds to 8 bits; the
backward is its kernel too, which leaves the largest magnitudes. The columns are formed from tiles, so
that what is read lies along rows and what is written along columns.
"""

import torch
import triton
import triton.language as tl

from eva_fast.kernels.add_layer_norm import (
    backward,
    backward_aot_case,
    forward,
    forward_aot_case,
)
from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import cdiv, kernel, triton_op
from eva_fast.kernels.quantise_fp8 import BLOCK_K, BLOCK_M, LEAST_CAPABILITY, inverse_of, limits
from eva_fast.ops.add_layer_norm_fp8 import FORMAT
from eva_fast.ops.checks import rows as rows_of
from eva_fast.ops.quantise_fp8 import padded


@kernel
@triton.jit
def normed_columns_kernel(
    p_x, p_mean, p_rstd, p_weight, p_bias, p_scale, p_columns, s_x, M, PADDED,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: a tile [BLOCK_M, BLOCK_D] of LN(x), written as [BLOCK_D, BLOCK_M]."""
    blocks = tl.cdiv(D, BLOCK_D)
    o_m = tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)
    o_d = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    m_m, m_d = o_m < M, o_d < D
    m_x = m_m[:, None] & m_d[None, :]
    b_x = tl.load(p_x + o_m[:, None] * s_x + o_d[None, :], mask=m_x, other=0.0).to(tl.float32)
    b_mean = tl.load(p_mean + o_m, mask=m_m, other=0.0)
    b_rstd = tl.load(p_rstd + o_m, mask=m_m, other=0.0)
    b_weight = tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_y = (b_x - b_mean[:, None]) * b_rstd[:, None] * b_weight[None, :] + b_bias[None, :]
    b_y = tl.where(m_x, b_y * inverse_of(tl.load(p_scale)), 0.0)
    m_columns = m_d[:, None] & (o_m[None, :] < PADDED)
    b_columns = tl.trans(b_y.to(p_columns.dtype.element_ty))
    tl.store(p_columns + o_d[:, None] * PADDED + o_m[None, :], b_columns, mask=m_columns)


@triton_op("add_layer_norm_fp8", limits=limits)
def _forward(x, branch, branch_bias, scale, weight, bias, eps, y_scale):
    y = torch.empty_like(x, dtype=FORMAT, memory_format=torch.contiguous_format)
    return forward(x, branch, branch_bias, scale, weight, bias, eps, y_scale, y)


@triton_op("add_layer_norm_fp8_backward", limits=limits)
def _backward(dy, dresidual, total, mean, rstd, weight, bias, scale, y_scale, want_branch_bias):
    dx, dbranch, _, *sums, largest = backward(
        dy, dresidual, total, mean, rstd, weight, bias, scale, False, want_branch_bias, True
    )
    columns = _columns(rows_of(total), mean, rstd, weight, bias, y_scale)
    return dx, dbranch, columns, *sums, largest


def _columns(total, mean, rstd, weight, bias, y_scale):
    rows, width = total.shape
    length = padded(rows)
    columns = total.new_empty((width, length), dtype=FORMAT)
    tiles = cdiv(length, BLOCK_M) * cdiv(width, BLOCK_K)
    if tiles:
        normed_columns_kernel[(tiles,)](
            total, mean, rstd, weight, bias, y_scale, columns, total.stride(0), rows, length,
            D=width, BLOCK_M=BLOCK_M, BLOCK_D=BLOCK_K, num_warps=8,
        )  # fmt: skip
    return columns


def aot_cases(shape: AotShape) -> list[AotCase]:
    """All, with everything they can do."""
    if shape.capability < LEAST_CAPABILITY:
        return []
    rows, element = shape.batch * shape.tokens, f"*{shape.dtype}"
    columns = {f"p_{name}": "*fp32" for name in ("mean", "rstd", "weight", "bias", "scale")}
    return [
        forward_aot_case(shape, {"p_y": "*fp8e4nv", "p_y_scale": "*fp32"}, {}),
        backward_aot_case(shape, {"p_largest": "*fp32"}, {"p_y": None}),
        AotCase(
            normed_columns_kernel,
            {"p_x": element, **columns, "p_columns": "*fp8e4nv", "s_x": shape.width, "M": rows}
            | {"PADDED": padded(rows)},
            {"D": shape.width, "BLOCK_M": BLOCK_M, "BLOCK_D": BLOCK_K},
            num_warps=8,
        ),
    ]
