"""Triton kernels of `embed_tokens`: see eva_fast/ops/embed_tokens.py for the maths.

Forward: one token of one image a program. Backward: a program keeps one token and a block of
columns and walks over the images, so the position's gradient is complete where it is summed; the
sums over tokens (mask token, bias) leave as fp32 partials, one a token.
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
def embed_tokens_forward_kernel(
    p_patches, p_mask, p_mask_token, p_cls, p_pos, p_bias, p_out, B, N, K, s_b, s_n, s_pos,
    D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: one token; images vary fastest, so a position's row is read from the cache."""
    token = tl.program_id(0) // B
    image = (tl.program_id(0) % B).to(tl.int64)
    o_d = tl.arange(0, BLOCK)
    m_d = o_d < D
    b_pos = tl.load(p_pos + token.to(tl.int64) * s_pos + o_d, mask=m_d, other=0.0).to(tl.float32)
    p_row = p_out + (image * (N + 1) + token) * D + o_d
    masked = False
    if p_mask is not None:
        o_k = tl.arange(0, BLOCK_K)
        b_mask = tl.load(p_mask + image * K + o_k, mask=o_k < K, other=-2)
        masked = tl.max((b_mask == token - 1).to(tl.int32), 0) > 0
    if token == 0:
        b_token = tl.load(p_cls + o_d, mask=m_d, other=0.0).to(tl.float32)
        tl.store(p_row, (b_token + b_pos).to(p_out.dtype.element_ty), mask=m_d)
    elif masked:
        b_token = tl.load(p_mask_token + o_d, mask=m_d, other=0.0).to(tl.float32)
        tl.store(p_row, (b_token + b_pos).to(p_out.dtype.element_ty), mask=m_d)
    else:
        p_patch = p_patches + image * s_b + (token - 1).to(tl.int64) * s_n + o_d
        b_token = tl.load(p_patch, mask=m_d, other=0.0).to(tl.float32)
        if p_bias is not None:
            b_token += tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)
        tl.store(p_row, (b_token + b_pos).to(p_out.dtype.element_ty), mask=m_d)


@kernel
@triton.jit
def embed_tokens_backward_kernel(
    p_dout, p_mask, p_dpatches, p_dpos, p_dcls, p_partials, B, N, K, s_b, s_t,
    D: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_D columns of one token, of all images."""
    blocks = tl.cdiv(D, BLOCK_D)
    token = tl.program_id(0) // blocks
    o_d = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < D
    o_k = tl.arange(0, BLOCK_K)
    b_masked = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    b_kept = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    for start in range(0, B, BLOCK_B):
        o_b = start + tl.arange(0, BLOCK_B).to(tl.int64)
        m_tile = (o_b[:, None] < B) & m_d[None, :]
        p_tile = p_dout + o_b[:, None] * s_b + token.to(tl.int64) * s_t + o_d[None, :]
        b_dout = tl.load(p_tile, mask=m_tile, other=0.0).to(tl.float32)
        b_kept_here = b_dout
        if p_mask is not None:
            m_mask = (o_b[:, None] < B) & (o_k[None, :] < K)
            b_mask = tl.load(p_mask + o_b[:, None] * K + o_k[None, :], mask=m_mask, other=-2)
            masked = tl.max((b_mask == token - 1).to(tl.int32), 1)[:, None] > 0  # [BLOCK_B, 1]
            b_kept_here = tl.where(masked, 0.0, b_dout)
            b_masked += tl.where(masked, b_dout, 0.0)
        b_kept += b_kept_here
        p_tile = p_dpatches + (o_b[:, None] * N + token - 1) * D + o_d[None, :]
        m_patch = (o_b[:, None] < tl.where(token > 0, B, 0)) & m_d[None, :]
        tl.store(p_tile, b_kept_here.to(p_dpatches.dtype.element_ty), mask=m_patch)
    b_sum_masked = tl.sum(b_masked, 0)
    b_sum_kept = tl.sum(b_kept, 0)
    b_dpos = b_sum_masked + b_sum_kept
    p_row = p_dpos + token.to(tl.int64) * D + o_d
    tl.store(p_row, b_dpos.to(p_dpos.dtype.element_ty), mask=m_d)
    if token == 0:  # CLS: belongs to neither sum over patches
        tl.store(p_dcls + o_d, b_dpos.to(p_dcls.dtype.element_ty), mask=m_d)
        b_sum_kept = tl.zeros([BLOCK_D], tl.float32)
    p_row = p_partials + token.to(tl.int64) * (2 * D) + o_d
    tl.store(p_row, b_sum_masked, mask=m_d)
    tl.store(p_row + D, b_sum_kept, mask=m_d)


@triton_op("embed_tokens")
def _forward(patches, mask, mask_token, cls_token, pos_embed, patch_bias):
    batch, count, width = patches.shape
    out = patches.new_empty((batch, count + 1, width))
    masked = mask.shape[1] if mask is not None else 0
    if out.numel():
        embed_tokens_forward_kernel[(batch * (count + 1),)](
            patches, mask, mask_token, cls_token, pos_embed, patch_bias, out,
            batch, count, masked, patches.stride(0), patches.stride(1), pos_embed.stride(0),
            D=width, BLOCK=row_block(width), BLOCK_K=row_block(masked),
            num_warps=row_warps(width, PER_THREAD),
        )  # fmt: skip
    return out


@triton_op("embed_tokens_backward")
def _backward(dout, mask, parameter_dtype, want_bias):
    batch, tokens, width = dout.shape
    dpatches = dout.new_empty((batch, tokens - 1, width))
    dpos = dout.new_empty((tokens, width), dtype=parameter_dtype)
    dcls = dout.new_empty((width,), dtype=parameter_dtype)
    partials = dout.new_empty((tokens, 2, width), dtype=torch.float32)
    masked = mask.shape[1] if mask is not None else 0
    columns = min(COLUMNS, row_block(width))
    embed_tokens_backward_kernel[(tokens * cdiv(width, columns),)](
        dout, mask, dpatches, dpos, dcls, partials, batch, tokens - 1, masked,
        dout.stride(0), dout.stride(1),
        D=width, BLOCK_B=IMAGES, BLOCK_D=columns, BLOCK_K=row_block(masked), num_warps=4,
    )  # fmt: skip
    dmask_token, dbias = partial_sums(partials, parameter_dtype)
    return dpatches, dmask_token, dcls, dpos, dbias if want_bias else dbias.new_empty((0,))


def aot_cases(shape: AotShape) -> list[AotCase]:
    width, element, count = shape.width, f"*{shape.dtype}", shape.tokens - 1
    pointers = ("patches", "mask_token", "cls", "pos", "bias", "out")
    sizes = {"B": shape.batch, "N": count, "K": shape.masked, "p_mask": "*i32"}
    sizes |= {"s_b": shape.tokens * width}
    return [
        AotCase(
            embed_tokens_forward_kernel,
            {f"p_{name}": element for name in pointers}
            | {**sizes, "s_b": count * width, "s_n": width, "s_pos": width},
            {"D": width, "BLOCK": row_block(width), "BLOCK_K": row_block(shape.masked)},
            num_warps=row_warps(width, PER_THREAD),
        ),
        AotCase(
            embed_tokens_backward_kernel,
            {f"p_{name}": element for name in ("dout", "dpatches", "dpos", "dcls")}
            | {**sizes, "p_partials": "*fp32", "s_t": width},
            {"D": width, "BLOCK_B": IMAGES, "BLOCK_D": min(COLUMNS, row_block(width))}
            | {"BLOCK_K": row_block(shape.masked)},
        ),
    ]
