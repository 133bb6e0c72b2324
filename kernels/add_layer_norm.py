"""Triton kernels of `add_layer_norm`: see eva_fast/ops/add_layer_norm.py for the maths.

A program holds a whole row in registers, BLOCK columns (a power of two) of which D are used; D is a
constant, so the mask keeps to 16-byte pieces and every access is 128 bits wide. Forward: one row a
program. Backward: a persistent grid in which each program adds up its rows' share of the parameter
gradients in fp32 and writes it once.
"""

import torch
import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import resident_programs, row_block, row_warps, triton_op
from eva_fast.kernels.partial_sums import partial_sums
from eva_fast.ops.checks import nothing

FORWARD_PER_THREAD = 16
# The backward has three rows and two or three sums in registers.
BACKWARD_PER_THREAD = 8
PROGRAMS_PER_PROCESSOR = 2


@triton.jit
def add_layer_norm_forward_kernel(
    p_x, p_branch, p_branch_bias, p_scale, p_weight, p_bias, p_total, p_y, p_mean, p_rstd,
    s_x, s_branch, rows_per_sample, eps,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one row."""
    row = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BLOCK)
    m_d = o_d < D
    b_x = tl.load(p_x + row * s_x + o_d, mask=m_d, other=0.0).to(tl.float32)  # [BLOCK]
    if p_branch is not None:
        b_branch = tl.load(p_branch + row * s_branch + o_d, mask=m_d, other=0.0).to(tl.float32)
        if p_branch_bias is not None:
            b_branch += tl.load(p_branch_bias + o_d, mask=m_d, other=0.0).to(tl.float32)
        if p_scale is not None:
            b_branch *= tl.load(p_scale + tl.program_id(0) // rows_per_sample)
        # the statistics are those of x' as stored: the backward sees nothing else
        b_total = (b_x + b_branch).to(p_total.dtype.element_ty)
        tl.store(p_total + row * D + o_d, b_total, mask=m_d)
        b_x = b_total.to(tl.float32)
    mean = tl.sum(b_x, 0) / D
    b_centred = tl.where(m_d, b_x - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(b_centred * b_centred, 0) / D + eps)
    b_weight = tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_y = b_centred * rstd * b_weight + b_bias
    tl.store(p_y + row * D + o_d, b_y.to(p_y.dtype.element_ty), mask=m_d)
    tl.store(p_mean + row, mean)
    tl.store(p_rstd + row, rstd)


@triton.jit
def add_layer_norm_backward_kernel(
    p_dy, p_dresidual, p_total, p_mean, p_rstd, p_weight, p_bias, p_scale,
    p_dx, p_dbranch, p_y, p_partials, s_dy, s_dresidual, s_total, M, rows_per_sample,
    D: tl.constexpr, BLOCK: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """One program: every num_programs-th row, and its partial sums [SUMS, D]."""
    pid = tl.program_id(0)
    o_d = tl.arange(0, BLOCK)
    m_d = o_d < D
    b_weight = tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    if p_y is not None:
        b_bias = tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_dweight = tl.zeros([BLOCK], tl.float32)
    b_dbias = tl.zeros([BLOCK], tl.float32)
    b_dbranch_bias = tl.zeros([BLOCK], tl.float32)
    for index in range(pid, M, tl.num_programs(0)):
        row = tl.cast(index, tl.int64)
        b_x = tl.load(p_total + row * s_total + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_dy = tl.load(p_dy + row * s_dy + o_d, mask=m_d, other=0.0).to(tl.float32)
        if p_dresidual is not None:
            p_row = p_dresidual + row * s_dresidual
            b_dresidual = tl.load(p_row + o_d, mask=m_d, other=0.0).to(tl.float32)
        mean = tl.load(p_mean + row)
        rstd = tl.load(p_rstd + row)
        b_normed = tl.where(m_d, (b_x - mean) * rstd, 0.0)
        b_g = b_dy * b_weight
        along = tl.sum(b_g * b_normed, 0) / D
        b_dx = (b_g - tl.sum(b_g, 0) / D - b_normed * along) * rstd
        if p_dresidual is not None:
            b_dx += b_dresidual
        tl.store(p_dx + row * D + o_d, b_dx.to(p_dx.dtype.element_ty), mask=m_d)
        if p_scale is not None:
            b_dx *= tl.load(p_scale + index // rows_per_sample)
            tl.store(p_dbranch + row * D + o_d, b_dx.to(p_dbranch.dtype.element_ty), mask=m_d)
        if p_y is not None:
            b_y = b_normed * b_weight + b_bias
            tl.store(p_y + row * D + o_d, b_y.to(p_y.dtype.element_ty), mask=m_d)
        b_dweight += b_dy * b_normed
        b_dbias += b_dy
        if SUMS > 2:
            b_dbranch_bias += b_dx
    p_out = p_partials + pid.to(tl.int64) * (SUMS * D) + o_d
    tl.store(p_out, b_dweight, mask=m_d)
    tl.store(p_out + D, b_dbias, mask=m_d)
    if SUMS > 2:
        tl.store(p_out + 2 * D, b_dbranch_bias, mask=m_d)


@triton_op("add_layer_norm")
def _forward(x, branch, branch_bias, scale, weight, bias, eps):
    rows, width = x.shape
    total = x.new_empty(x.shape) if branch is not None else nothing(x)
    y = x.new_empty(x.shape)
    mean, rstd = (x.new_empty((rows,), dtype=torch.float32) for _ in range(2))
    if rows:
        add_layer_norm_forward_kernel[(rows,)](
            x, branch, branch_bias, scale, weight, bias, total, y, mean, rstd,
            x.stride(0), branch.stride(0) if branch is not None else 0,
            rows // scale.shape[0] if scale is not None else 1, eps,
            D=width, BLOCK=row_block(width), num_warps=row_warps(width, FORWARD_PER_THREAD),
        )  # fmt: skip
    return total, y, mean, rstd


@triton_op("add_layer_norm_backward")
def _backward(dy, dresidual, total, mean, rstd, weight, bias, scale, want_y, want_branch_bias):
    rows, width = dy.shape
    dx = dy.new_empty(dy.shape)
    dbranch = dy.new_empty(dy.shape) if scale is not None else nothing(dy)
    y = dy.new_empty(dy.shape) if want_y else nothing(dy)
    sums = 3 if want_branch_bias else 2
    programs = max(1, min(rows, resident_programs(dy.device, PROGRAMS_PER_PROCESSOR)))
    partials = mean.new_empty((programs, sums, width))
    add_layer_norm_backward_kernel[(programs,)](
        dy, dresidual, total, mean, rstd, weight, bias, scale,
        dx, dbranch, y if want_y else None, partials,
        dy.stride(0), dresidual.stride(0) if dresidual is not None else 0, total.stride(0),
        rows, max(rows // scale.shape[0], 1) if scale is not None else 1,
        D=width, BLOCK=row_block(width), SUMS=sums,
        num_warps=row_warps(width, BACKWARD_PER_THREAD),
    )  # fmt: skip
    dweight, dbias, *rest = partial_sums(partials, weight.dtype)
    return dx, dbranch, y, dweight, dbias, rest[0] if rest else nothing(weight)


def aot_cases(shape: AotShape) -> list[AotCase]:
    """Both kernels with everything they can do: drop-path, branch bias, recomputed y."""
    width, element, rows = shape.width, f"*{shape.dtype}", shape.batch * shape.tokens
    constants = {"D": width, "BLOCK": row_block(width)}
    pointers = ("x", "branch", "branch_bias", "weight", "bias", "total", "y")
    forward = {f"p_{name}": element for name in pointers}
    forward |= {f"p_{name}": "*fp32" for name in ("scale", "mean", "rstd")}
    pointers = ("dy", "dresidual", "total", "weight", "bias", "dx", "dbranch", "y")
    backward = {f"p_{name}": element for name in pointers}
    backward |= {f"p_{name}": "*fp32" for name in ("scale", "mean", "rstd", "partials")}
    strides = {"s_dy": width, "s_dresidual": width, "s_total": width}
    return [
        AotCase(
            add_layer_norm_forward_kernel,
            {**forward, "s_x": width, "s_branch": width, "rows_per_sample": shape.tokens}
            | {"eps": 1e-6},
            constants,
            num_warps=row_warps(width, FORWARD_PER_THREAD),
        ),
        AotCase(
            add_layer_norm_backward_kernel,
            {**backward, **strides, "M": rows, "rows_per_sample": shape.tokens},
            {**constants, "SUMS": 3},
            num_warps=row_warps(width, BACKWARD_PER_THREAD),
        ),
    ]
