"""Triton kernels of `masked_gather`: see eva_fast/ops/masked_gather.py for the maths.

One row a program in both directions. The backward asks of each token where, if at all, the mask
names it, so it writes every row once, zeros included, and needs no atomics.
"""

import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import kernel, row_block, row_warps, triton_op

PER_THREAD = 16


@kernel
@triton.jit
def masked_gather_forward_kernel(
    p_x, p_mask, p_out, K, s_xb, s_xt, D: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: one masked patch."""
    row = tl.program_id(0).to(tl.int64)
    token = 1 + tl.load(p_mask + row).to(tl.int64)
    image = (tl.program_id(0) // K).to(tl.int64)
    o_d = tl.arange(0, BLOCK)
    m_d = o_d < D
    b_x = tl.load(p_x + image * s_xb + token * s_xt + o_d, mask=m_d, other=0.0)
    tl.store(p_out + row * D + o_d, b_x, mask=m_d)


@kernel
@triton.jit
def masked_gather_backward_kernel(
    p_dout, p_mask, p_dx, T, K, s_dout,
    D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: one token."""
    row = tl.program_id(0).to(tl.int64)
    image = row // T
    token = row % T
    o_k = tl.arange(0, BLOCK_K)
    b_mask = tl.load(p_mask + image * K + o_k, mask=o_k < K, other=-1)
    # place in the mask plus one, zero where the mask does not name the token
    place = tl.sum(tl.where((b_mask + 1 == token) & (o_k < K), o_k + 1, 0), 0)
    o_d = tl.arange(0, BLOCK)
    m_d = o_d < D
    p_row = p_dout + (image * K + tl.maximum(place - 1, 0)) * s_dout
    b_dx = tl.load(p_row + o_d, mask=o_d < tl.where(place > 0, D, 0), other=0.0)
    tl.store(p_dx + row * D + o_d, b_dx, mask=m_d)


@triton_op("masked_gather")
def _forward(x, mask):
    count, width = mask.shape[1], x.shape[2]
    out = x.new_empty((mask.numel(), width))
    if mask.numel():
        masked_gather_forward_kernel[(mask.numel(),)](
            x, mask, out, count, x.stride(0), x.stride(1),
            D=width, BLOCK=row_block(width), num_warps=row_warps(width, PER_THREAD),
        )  # fmt: skip
    return out


@triton_op("masked_gather_backward")
def _backward(dout, mask, tokens):
    batch, count = mask.shape
    width = dout.shape[1]
    dx = dout.new_empty((batch, tokens, width))
    if dx.numel():
        masked_gather_backward_kernel[(batch * tokens,)](
            dout, mask, dx, tokens, count, dout.stride(0),
            D=width, BLOCK=row_block(width), BLOCK_K=row_block(count),
            num_warps=row_warps(width, PER_THREAD),
        )  # fmt: skip
    return dx


def aot_cases(shape: AotShape) -> list[AotCase]:
    width, element = shape.width, f"*{shape.dtype}"
    constants = {"D": width, "BLOCK": row_block(width)}
    warps = row_warps(width, PER_THREAD)
    sizes = {"K": shape.masked, "p_mask": "*i32"}
    return [
        AotCase(
            masked_gather_forward_kernel,
            {"p_x": element, "p_out": element, "s_xb": shape.tokens * width, "s_xt": width} | sizes,
            constants,
            num_warps=warps,
        ),
        AotCase(
            masked_gather_backward_kernel,
            {"p_dout": element, "p_dx": element, "T": shape.tokens, "s_dout": width} | sizes,
            {**constants, "BLOCK_K": row_block(shape.masked)},
            num_warps=warps,
        ),
    ]
