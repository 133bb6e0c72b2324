"""Triton kernel of `embed_kept`: see eva_fast/ops/embed_kept.py for the maths. One token a program."""

import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import kernel, row_block, row_warps, triton_op

PER_THREAD = 16


@kernel
@triton.jit
def embed_kept_kernel(
    p_patches, p_kept, p_cls, p_pos, p_bias, p_out, K, s_b, s_k, s_pos,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: CLS or one patch of one image."""
    image = (tl.program_id(0) // (K + 1)).to(tl.int64)
    k = tl.program_id(0) % (K + 1) - 1
    o_d = tl.arange(0, BLOCK)
    m_d = o_d < D
    p_row = p_out + tl.program_id(0).to(tl.int64) * D + o_d
    if k < 0:
        b_token = tl.load(p_cls + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_pos = tl.load(p_pos + o_d, mask=m_d, other=0.0).to(tl.float32)
        tl.store(p_row, (b_token + b_pos).to(p_out.dtype.element_ty), mask=m_d)
    else:
        token = 1 + tl.load(p_kept + image * K + k).to(tl.int64)
        p_patch = p_patches + image * s_b + k.to(tl.int64) * s_k + o_d
        b_token = tl.load(p_patch, mask=m_d, other=0.0).to(tl.float32)
        if p_bias is not None:
            b_token += tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_pos = tl.load(p_pos + token * s_pos + o_d, mask=m_d, other=0.0).to(tl.float32)
        tl.store(p_row, (b_token + b_pos).to(p_out.dtype.element_ty), mask=m_d)


@triton_op("embed_kept")
def _forward(patches, kept, cls_token, pos_embed, patch_bias):
    batch, count, width = patches.shape
    out = patches.new_empty((batch, count + 1, width))
    if out.numel():
        embed_kept_kernel[(batch * (count + 1),)](
            patches, kept, cls_token, pos_embed, patch_bias, out, count,
            patches.stride(0), patches.stride(1), pos_embed.stride(0),
            D=width, BLOCK=row_block(width), num_warps=row_warps(width, PER_THREAD),
        )  # fmt: skip
    return out


def aot_cases(shape: AotShape) -> list[AotCase]:
    width, element, count = shape.width, f"*{shape.dtype}", shape.tokens // 4
    pointers = ("patches", "cls", "pos", "bias", "out")
    return [
        AotCase(
            embed_kept_kernel,
            {f"p_{name}": element for name in pointers}
            | {"p_kept": "*i32", "K": count, "s_b": count * width, "s_k": width, "s_pos": width},
            {"D": width, "BLOCK": row_block(width)},
            num_warps=row_warps(width, PER_THREAD),
        )
    ]
