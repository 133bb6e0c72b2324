"""Triton kernels of `add_layer_norm`: see eva_fast/ops/add_layer_norm.py for the maths.

A program holds a whole row in registers; D is a constant, so a mask keeps to 16-byte pieces.
Forward: one row a program, BLOCK columns (a power of two) of which D are used. Backward: a persistent
grid in which each program adds up its rows' share of the parameter gradients in fp32 and writes it
once; a row is cut in two pieces, so that few lanes idle, and the next rows are on their way meanwhile.
"""

import torch
import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import (
    WARP_SIZE,
    kernel,
    plan,
    planned,
    resident_programs,
    row_block,
    row_warps,
    triton_op,
)
from eva_fast.kernels.partial_sums import partial_sums
from eva_fast.kernels.quantise_fp8 import as_stored, inverse_of, magnitude_bits
from eva_fast.ops.checks import contiguous_like, nothing, row_stride
from eva_fast.ops.largest import PARTS

FORWARD_PER_THREAD = 16
# The backward: three rows and two or three sums are in registers, and few warps keep enough rows
# under way (2 programs of 4 warps with 3 rows of 8 KB each at width 1408; a write of all programs'
# sums for each more).
BACKWARD_PER_THREAD = 8
BACKWARD_STAGES = 4
BACKWARD_RESIDENT_WARPS = 8


@kernel
@triton.jit
def add_layer_norm_forward_kernel(
    p_x, p_branch, p_branch_bias, p_scale, p_weight, p_bias, p_y_scale, p_total, p_y, p_mean, p_rstd,
    s_x, s_branch, rows_per_sample, eps,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one row. With a scale y is divided by it, for 8 bits."""
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
    mean = tl.div_rn(tl.sum(b_x, 0), D * 1.0)
    b_centred = tl.where(m_d, b_x - mean, 0.0)
    variance = tl.div_rn(tl.sum(b_centred * b_centred, 0), D * 1.0)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))  # one a row, so the exact ones cost nothing
    b_weight = tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_y = b_centred * rstd * b_weight + b_bias
    if p_y_scale is not None:
        b_y *= inverse_of(tl.load(p_y_scale))
    tl.store(p_y + row * D + o_d, b_y.to(p_y.dtype.element_ty), mask=m_d)
    tl.store(p_mean + row, mean)
    tl.store(p_rstd + row, rstd)


@triton.jit
def add_pairs(a, b, c, d):
    return a + c, b + d


@triton.jit
def row_piece(p_row, o_d, m_d):
    """A piece of a row in fp32."""
    return tl.load(p_row + o_d, mask=m_d, other=0.0).to(tl.float32)


@triton.jit
def backward_piece(
    b_dy, b_normed, b_weight, b_bias, mean_g, along, rstd, scale,
    p_dresidual, p_dx, p_dbranch, p_y, o_dresidual, o_out, o_d, m_d,
):  # fmt: skip
    """Writes what the backward has to say of a piece of a row; returns dbranch (dx without it)."""
    b_dx = (b_dy * b_weight - mean_g - b_normed * along) * rstd
    if p_dresidual is not None:
        b_dx += row_piece(p_dresidual + o_dresidual, o_d, m_d)
    tl.store(p_dx + o_out + o_d, b_dx.to(p_dx.dtype.element_ty), mask=m_d)
    if scale is not None:
        b_dx *= scale
        tl.store(p_dbranch + o_out + o_d, b_dx.to(p_dbranch.dtype.element_ty), mask=m_d)
    if p_y is not None:
        b_y = b_normed * b_weight + b_bias
        tl.store(p_y + o_out + o_d, b_y.to(p_y.dtype.element_ty), mask=m_d)
    return b_dx


@kernel
@triton.jit
def add_layer_norm_backward_kernel(
    p_dy, p_dresidual, p_total, p_mean, p_rstd, p_weight, p_bias, p_scale,
    p_dx, p_dbranch, p_y, p_partials, p_largest, s_dy, s_dresidual, s_total, M, rows_per_sample,
    D: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, SUMS: tl.constexpr,
    STAGES: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program: every num_programs-th row, its partial sums [SUMS, D], and the largest magnitude of
    dbranch (dx without it) in its rows.

    A row is two pieces, HEAD and TAIL wide (TAIL may be 0). The next STAGES - 1 rows are under way
    to shared memory meanwhile.
    """
    pid = tl.program_id(0)
    o_head = tl.arange(0, HEAD)
    m_head = o_head < D
    b_weight = row_piece(p_weight, o_head, m_head)
    b_bias = row_piece(p_bias, o_head, m_head)
    b_dweight = tl.zeros([HEAD], tl.float32)
    b_dbias = tl.zeros([HEAD], tl.float32)
    b_dbranch_bias = tl.zeros([HEAD], tl.float32)
    b_most = tl.zeros([TAIL if TAIL else HEAD], tl.int32)
    if TAIL:
        o_tail = HEAD + tl.arange(0, TAIL)
        m_tail = o_tail < D
        b_weight_t = row_piece(p_weight, o_tail, m_tail)
        b_bias_t = row_piece(p_bias, o_tail, m_tail)
        b_dweight_t = tl.zeros([TAIL], tl.float32)
        b_dbias_t = tl.zeros([TAIL], tl.float32)
        b_dbranch_bias_t = tl.zeros([TAIL], tl.float32)
    for index in tl.range(pid, M, tl.num_programs(0), num_stages=STAGES):
        row = tl.cast(index, tl.int64)
        mean = tl.load(p_mean + row)
        rstd = tl.load(p_rstd + row)
        scale = None
        if p_scale is not None:
            scale = tl.load(p_scale + index // rows_per_sample)
        b_x = row_piece(p_total + row * s_total, o_head, m_head)
        b_dy = row_piece(p_dy + row * s_dy, o_head, m_head)
        b_normed = tl.where(m_head, (b_x - mean) * rstd, 0.0)
        b_g = b_dy * b_weight
        b_along = b_g * b_normed
        if TAIL:
            b_x_t = row_piece(p_total + row * s_total, o_tail, m_tail)
            b_dy_t = row_piece(p_dy + row * s_dy, o_tail, m_tail)
            b_normed_t = tl.where(m_tail, (b_x_t - mean) * rstd, 0.0)
            b_g_t = b_dy_t * b_weight_t
            # HEAD's neighbours are in one thread: both pieces take one trip through the warps
            b_along = tl.sum(tl.reshape(b_along, [TAIL, 2]), 1) + b_g_t * b_normed_t
            b_g = tl.sum(tl.reshape(b_g, [TAIL, 2]), 1) + b_g_t
        mean_g, along = tl.reduce((b_g, b_along), 0, add_pairs)
        mean_g, along = tl.div_rn(mean_g, D * 1.0), tl.div_rn(along, D * 1.0)
        b_dx = backward_piece(
            b_dy, b_normed, b_weight, b_bias, mean_g, along, rstd, scale, p_dresidual,
            p_dx, p_dbranch, p_y, row * s_dresidual, row * D, o_head, m_head,
        )  # fmt: skip
        b_dweight += b_dy * b_normed
        b_dbias += b_dy
        if SUMS > 2:
            b_dbranch_bias += b_dx
        if p_largest is not None:
            b_bits = tl.where(m_head, magnitude_bits(b_dx), 0)
            if TAIL:
                b_bits = tl.max(tl.reshape(b_bits, [TAIL, 2]), 1)
            b_most = tl.maximum(b_most, b_bits)
        if TAIL:
            b_dx_t = backward_piece(
                b_dy_t, b_normed_t, b_weight_t, b_bias_t, mean_g, along, rstd, scale, p_dresidual,
                p_dx, p_dbranch, p_y, row * s_dresidual, row * D, o_tail, m_tail,
            )  # fmt: skip
            b_dweight_t += b_dy_t * b_normed_t
            b_dbias_t += b_dy_t
            if SUMS > 2:
                b_dbranch_bias_t += b_dx_t
            if p_largest is not None:
                b_most = tl.maximum(b_most, tl.where(m_tail, magnitude_bits(b_dx_t), 0))
    if p_largest is not None:
        element = p_dx.dtype.element_ty if p_scale is None else p_dbranch.dtype.element_ty
        # how many parts there are must not depend on the device: each program fills several
        o_p = tl.arange(0, PARTS)
        m_p = (o_p % tl.num_programs(0) == pid) & (o_p < M)
        most = as_stored(tl.max(b_most, 0), element)
        tl.store(p_largest + o_p, tl.broadcast_to(most, [PARTS]), mask=m_p)
    p_out = p_partials + pid.to(tl.int64) * (SUMS * D)
    store_sums(p_out, b_dweight, b_dbias, b_dbranch_bias, o_head, m_head, D, SUMS)
    if TAIL:
        store_sums(p_out, b_dweight_t, b_dbias_t, b_dbranch_bias_t, o_tail, m_tail, D, SUMS)


@triton.jit
def store_sums(
    p_out, b_first, b_second, b_third, o_d, m_d, D: tl.constexpr, SUMS: tl.constexpr
):  # fmt: skip
    """A piece of up to three sums, which lie one row [D] after another."""
    tl.store(p_out + o_d, b_first, mask=m_d)
    tl.store(p_out + D + o_d, b_second, mask=m_d)
    if SUMS > 2:
        tl.store(p_out + 2 * D + o_d, b_third, mask=m_d)


def backward_launch(width: int) -> tuple[dict[str, int], int]:
    """({HEAD, TAIL}, warps): the smallest power of two that holds a row, or three quarters of it
    (1024 + 512 for 1408: 8 % of the lanes idle, not 31 %), and 8 to 12 elements of it a thread."""
    head, tail = row_block(width), 0
    if head > 16 and head // 4 * 3 >= width:
        head, tail = head // 2, head // 4
    warps = min(max(head // (WARP_SIZE * BACKWARD_PER_THREAD), 1), 8)
    return {"HEAD": head, "TAIL": tail}, warps


@planned
def _forward_plan(rows, width, s_x, s_branch, samples, eps):
    return plan(
        add_layer_norm_forward_kernel, (rows,), s_x, s_branch, max(rows // samples, 1), eps,
        D=width, BLOCK=row_block(width), num_warps=row_warps(width, FORWARD_PER_THREAD),
    )  # fmt: skip


@triton_op("add_layer_norm")
def _forward(x, branch, branch_bias, scale, weight, bias, eps):
    return forward(x, branch, branch_bias, scale, weight, bias, eps, None, contiguous_like(x))


def forward(x, branch, branch_bias, scale, weight, bias, eps, y_scale, y):
    """Fills y, and returns what the op does."""
    rows, width = x.shape[:-1].numel(), x.shape[-1]
    total = contiguous_like(x) if branch is not None else nothing(x)
    mean = x.new_empty(rows, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    if rows:
        samples = scale.shape[0] if scale is not None else rows
        launch = _forward_plan(rows, width, row_stride(x), row_stride(branch), samples, eps)
        launch(x, branch, branch_bias, scale, weight, bias, y_scale, total, y, mean, rstd)
    return total, y, mean, rstd


@planned
def _backward_plan(rows, width, s_dy, s_dresidual, s_total, samples, sums, device, most):
    """(programs, `most` at most; the launch)."""
    pieces, warps = backward_launch(width)
    resident = resident_programs(device, BACKWARD_RESIDENT_WARPS // warps)
    programs = max(1, min(rows, resident, most))
    return programs, plan(
        add_layer_norm_backward_kernel, (programs,), s_dy, s_dresidual, s_total,
        rows, max(rows // samples, 1),
        D=width, SUMS=sums, STAGES=BACKWARD_STAGES, PARTS=PARTS, **pieces,
        num_warps=warps,
    )  # fmt: skip


@triton_op("add_layer_norm_backward")
def _backward(*given):
    return backward(*given, False)[:-1]


def backward(
    dy, dresidual, total, mean, rstd, weight, bias, scale, want_y, want_branch_bias, want_largest
):
    """What the op returns, and parts of the largest magnitude of dbranch, or None."""
    rows, width = mean.shape[0], dy.shape[-1]
    dx = contiguous_like(dy)
    dbranch = torch.empty_like(dx) if scale is not None else nothing(dy)
    y = torch.empty_like(dx) if want_y else nothing(dy)
    sums = 3 if want_branch_bias else 2
    programs, launch = _backward_plan(
        rows, width, row_stride(dy), row_stride(dresidual), row_stride(total),
        scale.shape[0] if scale is not None else max(rows, 1), sums, dy.device,
        PARTS if want_largest else rows,
    )  # fmt: skip
    partials = mean.new_empty(programs, sums, width)
    largest = mean.new_empty(min(rows, PARTS)) if want_largest else None
    launch(
        dy, dresidual, total, mean, rstd, weight, bias, scale,
        dx, dbranch if scale is not None else None, y if want_y else None, partials,
        largest,
    )  # fmt: skip
    dweight, dbias, *rest = partial_sums(partials, weight.dtype)
    return dx, dbranch, y, dweight, dbias, rest[0] if rest else nothing(weight), largest


def forward_aot_case(
    shape: AotShape, args: dict[str, str], constants: dict[str, None], label: str = ""
) -> AotCase:
    """The forward kernel with everything it can do; p_y and p_y_scale are the caller's."""
    width = shape.width
    pointers = ("x", "branch", "branch_bias", "weight", "bias", "total")
    args = {f"p_{name}": f"*{shape.dtype}" for name in pointers} | args
    args |= {f"p_{name}": "*fp32" for name in ("scale", "mean", "rstd")}
    return AotCase(
        add_layer_norm_forward_kernel,
        {**args, "s_x": width, "s_branch": width, "rows_per_sample": shape.tokens, "eps": 1e-6},
        {"D": width, "BLOCK": row_block(width), **constants},
        num_warps=row_warps(width, FORWARD_PER_THREAD),
        label=label,
    )


def aot_cases(shape: AotShape) -> list[AotCase]:
    """Both kernels with everything they can do: drop-path, branch bias, recomputed y."""
    element = f"*{shape.dtype}"
    return [
        forward_aot_case(shape, {"p_y": element}, {"p_y_scale": None}),
        backward_aot_case(shape, {"p_y": element}, {"p_largest": None}),
    ]


def backward_aot_case(shape: AotShape, args: dict[str, str], constants: dict[str, None]) -> AotCase:
    """The backward kernel with drop-path and branch bias; p_y and p_largest are the caller's."""
    width, element, rows = shape.width, f"*{shape.dtype}", shape.batch * shape.tokens
    pointers = ("dy", "dresidual", "total", "weight", "bias", "dx", "dbranch")
    given = {f"p_{name}": element for name in pointers}
    given |= {f"p_{name}": "*fp32" for name in ("scale", "mean", "rstd", "partials")}
    pieces, warps = backward_launch(width)
    strides = {"s_dy": width, "s_dresidual": width, "s_total": width}
    return AotCase(
        add_layer_norm_backward_kernel,
        {**given, **args, **strides, "M": rows, "rows_per_sample": shape.tokens},
        {"D": width, "SUMS": 3, "STAGES": BACKWARD_STAGES, "PARTS": PARTS, **pieces, **constants},
        num_warps=warps,
        small_tiles=bool(pieces["TAIL"]),
    )
