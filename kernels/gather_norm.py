"""LayerNorm of gathered rows, and its backward with the scatter: the parts which
`layer_norm_project` and `masked_cosine_head` share.

    row m = b K + k of the input is x[b, 1 + mask[b, k]]; without a mask it is row m of x.
    xhat = (x - mean) rstd,  y = xhat w + c
    g = dy w,  dx = rstd (g - mean(g) - xhat mean(g xhat)),  dw = sum dy xhat,  dc = sum dy

One program holds a whole row. The backward walks over the rows of dx, so that every row is written
once: a row looks itself up in its image's mask and is zero where it is not there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import kernel, next_power_of_2, resident_programs, row_block, row_warps
from eva_fast.kernels.partial_sums import partial_sums

PER_THREAD = 8
PER_PROCESSOR = 4


@triton.jit
def row_offsets(o_m, p_mask, m_m, K, s_image, s_row, HAS_MASK: tl.constexpr):
    """Element offsets in x of rows o_m: through the mask, or o_m rows on."""
    if HAS_MASK:
        index = tl.load(p_mask + o_m, mask=m_m, other=0)
        return (o_m // K).to(tl.int64) * s_image + (1 + index).to(tl.int64) * s_row
    return o_m.to(tl.int64) * s_row


@kernel
@triton.jit
def gather_norm_kernel(
    p_x, p_mask, p_w, p_c, p_y, p_mean, p_rstd, eps, K, s_image, s_row,
    D: tl.constexpr, BLOCK: tl.constexpr, HAS_MASK: tl.constexpr, WRITE_Y: tl.constexpr,
):  # fmt: skip
    """One program: mean and rstd of one row and, with WRITE_Y, the normalised row."""
    row = tl.program_id(0)
    o_d = tl.arange(0, BLOCK)
    m_d = o_d < D
    p_row = p_x + row_offsets(row, p_mask, True, K, s_image, s_row, HAS_MASK)
    b_x = tl.load(p_row + o_d, mask=m_d, other=0.0).to(tl.float32)
    mean = tl.div_rn(tl.sum(b_x, 0), D * 1.0)
    b_x = tl.where(m_d, b_x - mean, 0.0)
    variance = tl.div_rn(tl.sum(b_x * b_x, 0), D * 1.0)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))  # one a row, so the exact ones cost nothing
    tl.store(p_mean + row, mean)
    tl.store(p_rstd + row, rstd)
    if WRITE_Y:
        b_w = tl.load(p_w + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_c = tl.load(p_c + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_y = (b_x * rstd * b_w + b_c).to(p_y.dtype.element_ty)
        tl.store(p_y + row.to(tl.int64) * D + o_d, b_y, mask=m_d)


@kernel
@triton.jit
def norm_scatter_kernel(
    p_dy, p_x, p_mask, p_w, p_mean, p_rstd, p_dx, p_partials, rows, K, T, s_image, s_row,
    D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Persistent programs: dx of every row, and this program's part of dw and dc."""
    o_d = tl.arange(0, BLOCK)
    m_d = o_d < D
    b_w = tl.load(p_w + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_dw = tl.zeros([BLOCK], tl.float32)
    b_dc = tl.zeros([BLOCK], tl.float32)
    for index in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(index, tl.int64)
        p_row = p_x + row * s_row
        source = row
        found = 1
        if HAS_MASK:
            image = row // T
            p_row = p_x + image * s_image + (row % T) * s_row
            o_k = tl.arange(0, BLOCK_K)
            b_mask = tl.load(p_mask + image * K + o_k, mask=o_k < K, other=-2)
            b_hit = (b_mask == row % T - 1).to(tl.int32)  # CLS looks for -1 and finds nothing
            source = image * K + tl.sum(b_hit * o_k, 0)
            found = tl.sum(b_hit, 0)
        m_row = o_d < D * found
        mean = tl.load(p_mean + source, mask=found > 0, other=0.0)
        rstd = tl.load(p_rstd + source, mask=found > 0, other=0.0)
        b_dy = tl.load(p_dy + source * D + o_d, mask=m_row, other=0.0).to(tl.float32)
        b_x = tl.load(p_row + o_d, mask=m_row, other=0.0).to(tl.float32)
        b_xhat = tl.where(m_row, (b_x - mean) * rstd, 0.0)
        b_g = b_dy * b_w
        b_dx = rstd * (b_g - tl.sum(b_g, 0) / D - b_xhat * (tl.sum(b_g * b_xhat, 0) / D))
        tl.store(p_dx + row * D + o_d, b_dx.to(p_dx.dtype.element_ty), mask=m_d)
        b_dw += b_dy * b_xhat
        b_dc += b_dy
    p_sums = p_partials + tl.program_id(0) * (2 * D) + o_d
    tl.store(p_sums, b_dw, mask=m_d)
    tl.store(p_sums + D, b_dc, mask=m_d)


def rows_of(x: Tensor, mask: Tensor | None) -> int:
    """Rows M that the op works on."""
    return x.shape[0] if mask is None else mask.numel()


def strides_of(x: Tensor) -> tuple[int, int]:
    """(image stride, row stride) of x [M, D] or [B, T, D]."""
    return (0 if x.dim() == 2 else x.stride(0)), x.stride(-2)


def gather_norm(
    x: Tensor, mask: Tensor | None, w: Tensor, c: Tensor, eps: float, write: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """(y [M, D] contiguous or None unless `write`, mean, rstd float32 [M]).

    x: [M, D], or [B, T, D] with mask int32 [B, K] contiguous; last stride 1. w, c: [D].
    """
    rows, width = rows_of(x, mask), x.shape[-1]
    y = x.new_empty((rows, width)) if write else None
    mean = x.new_empty((rows,), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    if rows:
        gather_norm_kernel[(rows,)](
            x, mask, w, c, y, mean, rstd, eps, 1 if mask is None else mask.shape[1], *strides_of(x),
            D=width, BLOCK=row_block(width), HAS_MASK=mask is not None, WRITE_Y=write,
            num_warps=row_warps(width, PER_THREAD),
        )  # fmt: skip
    return y, mean, rstd


def norm_scatter(
    dy: Tensor, x: Tensor, mask: Tensor | None, w: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx with x's shape, contiguous, every element written; dw, dc [D] in w's dtype).

    dy: [M, D] contiguous; x, mask, w as in `gather_norm`; mean, rstd: float32 [M] from it.
    """
    width = x.shape[-1]
    rows = x.numel() // width
    dx = x.new_empty(x.shape)
    programs = max(1, min(rows, resident_programs(x.device, PER_PROCESSOR)))
    partials = x.new_empty((programs, 2, width), dtype=torch.float32)
    count = 1 if mask is None else mask.shape[1]
    norm_scatter_kernel[(programs,)](
        dy, x, mask, w, mean, rstd, dx, partials, rows, count, x.shape[-2], *strides_of(x),
        D=width, BLOCK=row_block(width), BLOCK_K=next_power_of_2(max(count, 16)),
        HAS_MASK=mask is not None, num_warps=row_warps(width, PER_THREAD),
    )  # fmt: skip
    dw, dc = partial_sums(partials, w.dtype)
    return dx, dw, dc


def aot_cases(shape: AotShape) -> list[AotCase]:
    width, element, tokens = shape.width, f"*{shape.dtype}", shape.tokens
    args = {
        "p_x": element, "p_mask": "*i32", "p_w": element, "p_c": element, "p_y": element,
        "p_mean": "*fp32", "p_rstd": "*fp32", "eps": 1e-6, "K": shape.masked,
        "s_image": tokens * width, "s_row": width, "p_dy": element, "p_dx": element,
        "p_partials": "*fp32", "rows": shape.batch * tokens, "T": tokens,
    }  # fmt: skip
    constants = {"D": width, "BLOCK": row_block(width), "HAS_MASK": True}
    warps = row_warps(width, PER_THREAD)
    block_k = next_power_of_2(shape.masked)
    return [
        AotCase(gather_norm_kernel, {k: v for k, v in args.items() if k != "p_y"},
                {**constants, "WRITE_Y": False, "p_y": None}, warps, label="statistics"),
        AotCase(gather_norm_kernel, args, {**constants, "WRITE_Y": True}, warps),
        AotCase(norm_scatter_kernel, args, {**constants, "BLOCK_K": block_k}, warps),
    ]  # fmt: skip
