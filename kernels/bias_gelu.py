"""Triton kernels of `bias_gelu`: see eva_fast/ops/bias_gelu.py for the maths.

Tiles of a few rows by up to 512 columns. In the backward a program keeps its columns and walks down
the rows, adding up its share of the bias gradient in fp32; programs side by side read whole rows.
"""

import torch
import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import (
    cdiv,
    kernel,
    next_power_of_2,
    plan,
    planned,
    resident_programs,
    triton_op,
)
from eva_fast.kernels.partial_sums import partial_sums
from eva_fast.kernels.quantise_fp8 import inverse_of
from eva_fast.ops.bias_gelu import KINDS
from eva_fast.ops.checks import contiguous_like, nothing

COLUMNS = 512
ELEMENTS = 2048  # a tile: 16 for each of 128 threads
PROGRAMS_PER_PROCESSOR = 4
HALF_LOG2_E = tl.constexpr(0.7213475204444817)
LOG2_SQRT_2PI = tl.constexpr(1.3257480647361595)
QUICK_SLOPE = tl.constexpr(1.702)
TANH_SLOPE = tl.constexpr(1.5957691216057308)  # sqrt(8 / pi)
TANH_CUBIC = tl.constexpr(0.07135481627260025)  # 0.044715 sqrt(8 / pi)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def upper_tail(b_x):
    """Phi(-x), x >= 0, in fp32.

    log2 Phi(-x) is nearly a parabola: a polynomial of degree 8, fitted on [0, 6] so that x Phi(-x)
    is off by at most 3e-8 (a quarter of what rounding gelu(z) to fp32 costs at z = 4), and falling
    from there on. One exponential, no division, and no choice between two ranges as an erf has.
    """
    b_p = -1.39476936e-06 * b_x + 2.27569326e-05
    b_p = b_p * b_x - 0.000110713263
    b_p = b_p * b_x - 0.000309316209
    b_p = b_p * b_x + 0.00727354083
    b_p = b_p * b_x - 0.0526297353
    b_p = b_p * b_x - 0.459168226
    b_p = b_p * b_x - 1.15110958
    return tl.exp2(b_p * b_x - 1.0)


@triton.jit
def odds(b_z, KIND: tl.constexpr):
    """(1 - s) / s of the sigmoid s that is the gate by tanh or of QuickGELU, at most 2^126."""
    if KIND == "tanh":
        b_power = b_z * (b_z * b_z * (TANH_CUBIC * -LOG2_E) - TANH_SLOPE * LOG2_E)
    else:
        b_power = b_z * (QUICK_SLOPE * -LOG2_E)
    return tl.exp2(tl.minimum(b_power, 126.0))


@triton.jit
def gate(b_z, KIND: tl.constexpr, EXACT: tl.constexpr):
    """gelu(z) / z in fp32: Phi(z), or a sigmoid. EXACT: its division is rounded right, for results in
    fp32; in 16 bits nobody sees the difference, but the instructions."""
    if KIND == "erf":
        b_tail = upper_tail(tl.abs(b_z))
        return tl.where(b_z < 0, b_tail, 1.0 - b_tail)
    else:
        b_sum = 1.0 + odds(b_z, KIND)
        return tl.div_rn(1.0, b_sum) if EXACT else 1.0 / b_sum


@triton.jit
def gate_slope(b_z, b_gate, KIND: tl.constexpr):
    """gelu'(z) in fp32 from z and its gate."""
    if KIND == "erf":
        return b_gate + b_z * tl.exp2(b_z * b_z * -HALF_LOG2_E - LOG2_SQRT_2PI)
    else:
        b_steep = b_z * b_z * (3.0 * TANH_CUBIC) + TANH_SLOPE if KIND == "tanh" else QUICK_SLOPE
        # 1 - gate, without the cancellation on the right
        return b_gate * (1.0 + b_z * b_steep * (odds(b_z, KIND) * b_gate))


@triton.jit
def bias_tile(p_bias, o_f, F: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr):
    """The bias of columns o_f, once for each row of a tile: [BLOCK_M, BLOCK_F].

    Loaded as a tile, not as a row: spread over all threads a row would leave each too little for
    a 128-bit access."""
    o_tile = tl.broadcast_to(o_f[None, :], [BLOCK_M, BLOCK_F])
    return tl.load(p_bias + o_tile, mask=o_tile < F, other=0.0).to(tl.float32)


@kernel
@triton.jit
def bias_gelu_forward_kernel(
    p_h, p_bias, p_g_scale, p_g, s_h, M,
    F: tl.constexpr, KIND: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """One program: one tile [BLOCK_M, BLOCK_F]. With a scale g is divided by it, for 8 bits."""
    blocks = tl.cdiv(F, BLOCK_F)
    o_m = tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)
    o_f = tl.program_id(0) % blocks * BLOCK_F + tl.arange(0, BLOCK_F)
    m_tile = (o_m[:, None] < M) & (o_f[None, :] < F)
    b_z = tl.load(p_h + o_m[:, None] * s_h + o_f[None, :], mask=m_tile, other=0.0).to(tl.float32)
    if p_bias is not None:
        b_z += bias_tile(p_bias, o_f, F, BLOCK_M, BLOCK_F)
    b_g = b_z * gate(b_z, KIND, p_g.dtype.element_ty == tl.float32)
    if p_g_scale is not None:
        b_g *= inverse_of(tl.load(p_g_scale))
    p_out = p_g + o_m[:, None] * F + o_f[None, :]
    tl.store(p_out, b_g.to(p_g.dtype.element_ty), mask=m_tile)


@kernel
@triton.jit
def bias_gelu_backward_kernel(
    p_dg, p_h, p_bias, p_dh, p_g, p_partials, s_dg, s_h, M,
    F: tl.constexpr, KIND: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_F columns of every (num_programs / blocks)-th tile of rows."""
    blocks = tl.cdiv(F, BLOCK_F)
    group = tl.program_id(0) // blocks
    groups = tl.num_programs(0) // blocks
    o_f = tl.program_id(0) % blocks * BLOCK_F + tl.arange(0, BLOCK_F)
    m_f = o_f < F
    if p_bias is not None:
        b_bias = bias_tile(p_bias, o_f, F, BLOCK_M, BLOCK_F)
    b_sum = tl.zeros([BLOCK_M, BLOCK_F], tl.float32)
    for start in range(group * BLOCK_M, M, groups * BLOCK_M):
        o_m = start + tl.arange(0, BLOCK_M).to(tl.int64)
        m_tile = (o_m[:, None] < M) & m_f[None, :]
        b_z = tl.load(p_h + o_m[:, None] * s_h + o_f[None, :], mask=m_tile, other=0.0)
        b_dg = tl.load(p_dg + o_m[:, None] * s_dg + o_f[None, :], mask=m_tile, other=0.0)
        b_z = b_z.to(tl.float32)
        if p_bias is not None:
            b_z += b_bias
        b_gate = gate(b_z, KIND, p_dh.dtype.element_ty == tl.float32)
        b_dh = b_dg.to(tl.float32) * gate_slope(b_z, b_gate, KIND)  # zero outside the mask
        o_out = o_m[:, None] * F + o_f[None, :]
        tl.store(p_dh + o_out, b_dh.to(p_dh.dtype.element_ty), mask=m_tile)
        if p_g is not None:
            tl.store(p_g + o_out, (b_z * b_gate).to(p_g.dtype.element_ty), mask=m_tile)
        b_sum += b_dh
    if p_partials is not None:
        tl.store(p_partials + group.to(tl.int64) * F + o_f, tl.sum(b_sum, 0), mask=m_f)


def tile(width: int) -> tuple[int, int]:
    """(rows, columns) of a tile."""
    columns = min(COLUMNS, max(16, next_power_of_2(width)))
    return min(ELEMENTS // columns, 16), columns


@planned
def _forward_plan(rows, width, s_h, kind):
    block_m, block_f = tile(width)
    return plan(
        bias_gelu_forward_kernel, (cdiv(rows, block_m) * cdiv(width, block_f),), s_h, rows,
        F=width, KIND=kind, BLOCK_M=block_m, BLOCK_F=block_f, num_warps=4,
    )  # fmt: skip


@triton_op("bias_gelu")
def _forward(h, bias, kind):
    return forward(h, bias, kind, None, contiguous_like(h))


def forward(h, bias, kind, g_scale, g):
    """Fills g."""
    rows, width = h.shape
    if rows:
        _forward_plan(rows, width, h.stride(0), kind)(h, bias, g_scale, g)
    return g


@planned
def _backward_plan(rows, width, s_dg, s_h, kind, device):
    """(groups of programs that share a row of partial sums, the launch)."""
    block_m, block_f = tile(width)
    blocks = cdiv(width, block_f)
    resident = resident_programs(device, PROGRAMS_PER_PROCESSOR)
    groups = max(1, min(cdiv(rows, block_m), cdiv(resident, blocks)))
    return groups, plan(
        bias_gelu_backward_kernel, (groups * blocks,), s_dg, s_h, rows,
        F=width, KIND=kind, BLOCK_M=block_m, BLOCK_F=block_f, num_warps=4,
    )  # fmt: skip


@triton_op("bias_gelu_backward")
def _backward(dg, h, bias, kind, want_g, want_bias):
    rows, width = h.shape
    dh = contiguous_like(h)
    g = torch.empty_like(dh) if want_g else nothing(h)
    groups, launch = _backward_plan(rows, width, dg.stride(0), h.stride(0), kind, h.device)
    partials = h.new_empty(groups, 1, width, dtype=torch.float32) if want_bias else None
    launch(dg, h, bias, dh, g if want_g else None, partials)
    like = h if bias is None else bias
    return dh, g, partial_sums(partials, like.dtype)[0] if want_bias else nothing(like)


def aot_cases(shape: AotShape) -> list[AotCase]:
    """All kinds; the backward with the recomputed activation and the bias gradient."""
    width, element, rows = shape.mlp_hidden, f"*{shape.dtype}", shape.batch * shape.tokens
    block_m, block_f = tile(width)
    cases = []
    for kind in KINDS:
        constants = {"F": width, "KIND": kind, "BLOCK_M": block_m, "BLOCK_F": block_f}
        forward = {f"p_{name}": element for name in ("h", "bias", "g")}
        backward = {f"p_{name}": element for name in ("dg", "h", "bias", "dh", "g")}
        cases += [
            AotCase(
                bias_gelu_forward_kernel,
                {**forward, "s_h": width, "M": rows},
                {**constants, "p_g_scale": None},
                label=kind,
            ),
            AotCase(
                bias_gelu_backward_kernel,
                {**backward, "p_partials": "*fp32", "s_dg": width, "s_h": width, "M": rows},
                constants,
                label=kind,
            ),
        ]
    return cases
