"""Triton kernels of `unshuffle_tokens`: see eva_fast/ops/unshuffle_tokens.py for the maths.

Both ask of each token where, if at all, `kept` names it. Forward: one token of one image a program.
Backward: a program keeps one token and a block of columns and walks over the images; the sums over
tokens leave as fp32 partials, one a token.
"""

import torch
import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import cdiv, kernel, row_block, row_warps, triton_op
from eva_fast.kernels.partial_sums import partial_sums

PER_THREAD = 16
IMAGES = 8
COLUMNS = 512


@kernel
@triton.jit
def unshuffle_tokens_forward_kernel(
    p_rows, p_kept, p_mask_token, p_pos, p_out, B, T, K, s_b, s_r, s_pos,
    D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: one token; images vary fastest, so a position's row is read from the cache."""
    token = tl.program_id(0) // B
    image = (tl.program_id(0) % B).to(tl.int64)
    o_d = tl.arange(0, BLOCK)
    m_d = o_d < D
    o_k = tl.arange(0, BLOCK_K)
    b_kept = tl.load(p_kept + image * K + o_k, mask=o_k < K, other=-2)
    place = tl.sum(tl.where(b_kept == token - 1, o_k + 1, 0), 0)  # 0: not kept, or CLS
    b_pos = tl.load(p_pos + token.to(tl.int64) * s_pos + o_d, mask=m_d, other=0.0).to(tl.float32)
    p_row = p_out + (image * T + token) * D + o_d
    if (token > 0) & (place == 0):
        b_token = tl.load(p_mask_token + o_d, mask=m_d, other=0.0).to(tl.float32)
        tl.store(p_row, (b_token + b_pos).to(p_out.dtype.element_ty), mask=m_d)
    else:
        p_source = p_rows + image * s_b + place.to(tl.int64) * s_r + o_d
        b_token = tl.load(p_source, mask=m_d, other=0.0).to(tl.float32)
        tl.store(p_row, (b_token + b_pos).to(p_out.dtype.element_ty), mask=m_d)


@kernel
@triton.jit
def unshuffle_tokens_backward_kernel(
    p_dout, p_kept, p_drows, p_partials, B, K, s_b, s_t,
    D: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_D columns of one token, of all images."""
    blocks = tl.cdiv(D, BLOCK_D)
    token = tl.program_id(0) // blocks
    o_d = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < D
    o_k = tl.arange(0, BLOCK_K)
    b_masked = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    for start in range(0, B, BLOCK_B):
        o_b = start + tl.arange(0, BLOCK_B).to(tl.int64)
        m_tile = (o_b[:, None] < B) & m_d[None, :]
        p_tile = p_dout + o_b[:, None] * s_b + token.to(tl.int64) * s_t + o_d[None, :]
        b_dout = tl.load(p_tile, mask=m_tile, other=0.0)
        m_kept = (o_b[:, None] < B) & (o_k[None, :] < K)
        b_kept = tl.load(p_kept + o_b[:, None] * K + o_k[None, :], mask=m_kept, other=-2)
        place = tl.sum(tl.where(b_kept == token - 1, o_k[None, :] + 1, 0), 1)[:, None]
        here = (place > 0) | (token == 0)  # [BLOCK_B, 1]
        p_tile = p_drows + (o_b[:, None] * (K + 1) + place) * D + o_d[None, :]
        tl.store(p_tile, b_dout, mask=m_tile & here)
        b_masked += tl.where(here, 0.0, b_dout.to(tl.float32))
    p_row = p_partials + token.to(tl.int64) * D + o_d
    tl.store(p_row, tl.sum(b_masked, 0), mask=m_d)


@triton_op("unshuffle_tokens")
def _forward(rows, kept, mask_token, pos_embed):
    batch, count, width = rows.shape
    tokens = pos_embed.shape[0]
    out = rows.new_empty((batch, tokens, width))
    if out.numel():
        unshuffle_tokens_forward_kernel[(batch * tokens,)](
            rows, kept, mask_token, pos_embed, out, batch, tokens, count - 1,
            rows.stride(0), rows.stride(1), pos_embed.stride(0),
            D=width, BLOCK=row_block(width), BLOCK_K=row_block(count - 1),
            num_warps=row_warps(width, PER_THREAD),
        )  # fmt: skip
    return out


@triton_op("unshuffle_tokens_backward")
def _backward(dout, kept, parameter_dtype):
    batch, tokens, width = dout.shape
    count = kept.shape[1]
    drows = dout.new_empty((batch, count + 1, width))
    partials = dout.new_empty((tokens, 1, width), dtype=torch.float32)
    columns = min(COLUMNS, row_block(width))
    unshuffle_tokens_backward_kernel[(tokens * cdiv(width, columns),)](
        dout, kept, drows, partials, batch, count, dout.stride(0), dout.stride(1),
        D=width, BLOCK_B=IMAGES, BLOCK_D=columns, BLOCK_K=row_block(count), num_warps=4,
    )  # fmt: skip
    (dmask_token,) = partial_sums(partials, parameter_dtype)
    return drows, dmask_token


def aot_cases(shape: AotShape) -> list[AotCase]:
    width, element, count = shape.width, f"*{shape.dtype}", shape.tokens // 4
    rows = (count + 1) * width
    sizes = {"B": shape.batch, "K": count, "p_kept": "*i32"}
    pointers = ("rows", "mask_token", "pos", "out")
    return [
        AotCase(
            unshuffle_tokens_forward_kernel,
            {f"p_{name}": element for name in pointers}
            | {**sizes, "T": shape.tokens, "s_b": rows, "s_r": width, "s_pos": width},
            {"D": width, "BLOCK": row_block(width), "BLOCK_K": row_block(count)},
            num_warps=row_warps(width, PER_THREAD),
        ),
        AotCase(
            unshuffle_tokens_backward_kernel,
            {f"p_{name}": element for name in ("dout", "drows")}
            | {**sizes, "p_partials": "*fp32", "s_b": shape.tokens * width, "s_t": width},
            {"D": width, "BLOCK_B": IMAGES, "BLOCK_D": min(COLUMNS, row_block(width))}
            | {"BLOCK_K": row_block(count)},
        ),
    ]
