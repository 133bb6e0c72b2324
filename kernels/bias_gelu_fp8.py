"""Triton kernels of `bias_gelu_fp8`: see eva_fast/ops/bias_gelu_fp8.py for the maths.

The forward is the kernel of `bias_gelu`, which divides by the scale and rounds to 8 bits. The backward
works on tiles that are as tall as wide, so that rows and columns both are written in whole sectors; a
program keeps its columns and walks down the rows, adding up its share of the bias gradient in fp32.
"""

import torch
import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.bias_gelu import bias_gelu_forward_kernel, forward, gate, gate_slope, tile
from eva_fast.kernels.launch import cdiv, kernel, resident_programs, triton_op
from eva_fast.kernels.partial_sums import partial_sums
from eva_fast.kernels.quantise_fp8 import LEAST_CAPABILITY, inverse_of, limits, scale_of
from eva_fast.ops.bias_gelu import KINDS
from eva_fast.ops.bias_gelu_fp8 import FORMAT, STEEPEST
from eva_fast.ops.quantise_fp8 import LARGEST_EXPONENT, padded

BLOCK_M, BLOCK_F = 64, 64
PROGRAMS_PER_PROCESSOR = 4
WARPS = 8


@kernel
@triton.jit
def bias_gelu_fp8_backward_kernel(
    p_dg, p_h, p_bias, p_g_scale, p_row_norm, p_column_norm, p_dh_scale,
    p_dh, p_dh_columns, p_g_columns, p_partials, s_dg, s_h, M, PADDED,
    F: tl.constexpr, KIND: tl.constexpr, STEEPEST: tl.constexpr, EXPONENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_F columns of every (num_programs / blocks)-th tile of rows."""
    blocks = tl.cdiv(F, BLOCK_F)
    group = tl.program_id(0) // blocks
    groups = tl.num_programs(0) // blocks
    o_f = tl.program_id(0) % blocks * BLOCK_F + tl.arange(0, BLOCK_F)
    m_f = o_f < F
    scale = scale_of(tl.load(p_row_norm) * tl.load(p_column_norm) * STEEPEST, EXPONENT)
    tl.store(p_dh_scale, scale, mask=tl.program_id(0) == 0)
    inverse, g_inverse = inverse_of(scale), inverse_of(tl.load(p_g_scale))
    b_bias = tl.load(p_bias + o_f, mask=m_f, other=0.0).to(tl.float32)
    b_sum = tl.zeros([BLOCK_M, BLOCK_F], tl.float32)
    element = p_dh.dtype.element_ty
    for start in range(group * BLOCK_M, PADDED, groups * BLOCK_M):
        o_m = start + tl.arange(0, BLOCK_M).to(tl.int64)
        m_tile = (o_m[:, None] < M) & m_f[None, :]
        b_z = tl.load(p_h + o_m[:, None] * s_h + o_f[None, :], mask=m_tile, other=0.0)
        b_dg = tl.load(p_dg + o_m[:, None] * s_dg + o_f[None, :], mask=m_tile, other=0.0)
        b_z = b_z.to(tl.float32) + b_bias[None, :]
        b_gate = gate(b_z, KIND, False)
        b_dh = b_dg.to(tl.float32) * gate_slope(b_z, b_gate, KIND)  # zero outside the mask
        b_sum += b_dh
        b_dh = (b_dh * inverse).to(element)
        tl.store(p_dh + o_m[:, None] * F + o_f[None, :], b_dh, mask=m_tile)
        o_columns = o_f[:, None] * PADDED + o_m[None, :]
        m_columns = m_f[:, None] & (o_m[None, :] < PADDED)
        tl.store(p_dh_columns + o_columns, tl.trans(b_dh), mask=m_columns)
        b_g = tl.where(m_tile, b_z * b_gate * g_inverse, 0.0).to(element)
        tl.store(p_g_columns + o_columns, tl.trans(b_g), mask=m_columns)
    tl.store(p_partials + group.to(tl.int64) * F + o_f, tl.sum(b_sum, 0), mask=m_f)


@triton_op("bias_gelu_fp8", limits=limits)
def _forward(h, bias, kind, g_scale):
    g = torch.empty_like(h, dtype=FORMAT, memory_format=torch.contiguous_format)
    return forward(h, bias, kind, g_scale, g)


@triton_op("bias_gelu_fp8_backward", limits=limits)
def _backward(dg, h, bias, kind, g_scale, row_norm, column_norm):
    rows, width = h.shape
    length = padded(rows)
    dh = torch.empty_like(h, dtype=FORMAT, memory_format=torch.contiguous_format)
    dh_columns = h.new_empty((width, length), dtype=FORMAT)
    g_columns, dh_scale = torch.empty_like(dh_columns), torch.empty_like(g_scale)
    blocks = cdiv(width, BLOCK_F)
    resident = resident_programs(h.device, PROGRAMS_PER_PROCESSOR)
    groups = max(1, min(cdiv(length, BLOCK_M), cdiv(resident, blocks)))
    partials = h.new_empty(groups, 1, width, dtype=torch.float32)
    bias_gelu_fp8_backward_kernel[(groups * blocks,)](
        dg, h, bias, g_scale, row_norm, column_norm, dh_scale, dh, dh_columns, g_columns, partials,
        dg.stride(0), h.stride(0), rows, length,
        F=width, KIND=kind, STEEPEST=STEEPEST, EXPONENT=LARGEST_EXPONENT[FORMAT],
        BLOCK_M=BLOCK_M, BLOCK_F=BLOCK_F, num_warps=WARPS,
    )  # fmt: skip
    return dh, dh_columns, dh_scale, g_columns, partial_sums(partials, bias.dtype)[0]


def aot_cases(shape: AotShape) -> list[AotCase]:
    """Both directions, all kinds."""
    if shape.capability < LEAST_CAPABILITY:
        return []
    width, rows, element = shape.mlp_hidden, shape.batch * shape.tokens, f"*{shape.dtype}"
    block_m, block_f = tile(width)
    given = {"p_h": element, "p_bias": "*fp32", "p_g_scale": "*fp32", "s_h": width, "M": rows}
    singles = ("row_norm", "column_norm", "dh_scale", "partials")
    backward = given | {f"p_{name}": "*fp32" for name in singles}
    backward |= {f"p_{name}": "*fp8e4nv" for name in ("dh", "dh_columns", "g_columns")}
    backward |= {"p_dg": element, "s_dg": width, "PADDED": padded(rows)}
    fixed = {"STEEPEST": STEEPEST, "EXPONENT": LARGEST_EXPONENT[FORMAT]}
    cases = []
    for kind in KINDS:
        constants = {"F": width, "KIND": kind}
        cases += [
            AotCase(
                bias_gelu_forward_kernel,
                {**given, "p_g": "*fp8e4nv"},
                {**constants, "BLOCK_M": block_m, "BLOCK_F": block_f},
                label=kind,
            ),
            AotCase(
                bias_gelu_fp8_backward_kernel,
                backward,
                {**constants, **fixed, "BLOCK_M": BLOCK_M, "BLOCK_F": BLOCK_F},
                num_warps=WARPS,
                label=kind,
            ),
        ]
    return cases
