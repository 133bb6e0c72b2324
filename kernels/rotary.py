"""Triton kernel of `rotary`: see eva_fast/ops/rotary.py for the maths.

A program turns q and k of one token, all heads. Both values of a pair are one thread's, so that
nobody reads what somebody else has written already.
"""

import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import kernel, next_power_of_2, triton_op

WARPS = 4


@triton.jit
def load_pairs(p_rows, m_rows, PAIRS: tl.constexpr, HALVES: tl.constexpr, BLOCK_P: tl.constexpr):
    """(first, second) of the pairs of rows [R, 1] of pointers, in fp32. Neighbours are read together,
    16 bytes a thread, and then told apart."""
    R: tl.constexpr = p_rows.shape[0]
    if HALVES:
        o_p = tl.arange(0, BLOCK_P)[None, :]
        m_tile = m_rows & (o_p < PAIRS)
        b_a = tl.load(p_rows + o_p, mask=m_tile, other=0.0)
        b_b = tl.load(p_rows + PAIRS + o_p, mask=m_tile, other=0.0)
    else:
        o_d = tl.arange(0, 2 * BLOCK_P)[None, :]
        b_x = tl.load(p_rows + o_d, mask=m_rows & (o_d < 2 * PAIRS), other=0.0)
        b_a, b_b = tl.split(tl.reshape(b_x, [R, BLOCK_P, 2]))
    return b_a.to(tl.float32), b_b.to(tl.float32)


@triton.jit
def store_pairs(
    p_rows, m_rows, b_a, b_b, PAIRS: tl.constexpr, HALVES: tl.constexpr, BLOCK_P: tl.constexpr
):
    """The way back."""
    R: tl.constexpr = p_rows.shape[0]
    element = p_rows.dtype.element_ty
    if HALVES:
        o_p = tl.arange(0, BLOCK_P)[None, :]
        m_tile = m_rows & (o_p < PAIRS)
        tl.store(p_rows + o_p, b_a.to(element), mask=m_tile)
        tl.store(p_rows + PAIRS + o_p, b_b.to(element), mask=m_tile)
    else:
        o_d = tl.arange(0, 2 * BLOCK_P)[None, :]
        b_x = tl.reshape(tl.join(b_a.to(element), b_b.to(element)), [R, 2 * BLOCK_P])
        tl.store(p_rows + o_d, b_x, mask=m_rows & (o_d < 2 * PAIRS))


@kernel
@triton.jit
def rotary_kernel(
    p_packed, p_sin, p_cos, T, N, s_sin, s_cos,
    ROWS: tl.constexpr, PAIRS: tl.constexpr, HALVES: tl.constexpr, BACKWARD: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: the ROWS = 2 H heads of q and k, of PAIRS = d / 2 pairs, of one token."""
    image, place = tl.program_id(0) // N, tl.program_id(0) % N
    token = image.to(tl.int64) * T + (T - N) + place
    o_one = tl.arange(0, 1)[:, None]
    p_sin_row = p_sin + place.to(tl.int64) * s_sin + o_one
    p_cos_row = p_cos + place.to(tl.int64) * s_cos + o_one
    b_sin_a, b_sin_b = load_pairs(p_sin_row, o_one == 0, PAIRS, HALVES, BLOCK_P)
    b_cos_a, b_cos_b = load_pairs(p_cos_row, o_one == 0, PAIRS, HALVES, BLOCK_P)
    o_r = tl.arange(0, BLOCK_R)[:, None]
    p_heads = p_packed + (token * (ROWS // 2 * 3) + o_r) * (2 * PAIRS)
    b_a, b_b = load_pairs(p_heads, o_r < ROWS, PAIRS, HALVES, BLOCK_P)
    if BACKWARD:
        b_low = b_a * b_cos_a + b_b * b_sin_b
        b_high = b_b * b_cos_b - b_a * b_sin_a
    else:
        b_low = b_a * b_cos_a - b_b * b_sin_a
        b_high = b_b * b_cos_b + b_a * b_sin_b
    store_pairs(p_heads, o_r < ROWS, b_low, b_high, PAIRS, HALVES, BLOCK_P)


def constants(heads: int, head_dim: int) -> dict[str, int]:
    """Sizes of a launch."""
    rows, pairs = 2 * heads, head_dim // 2
    blocks = {"BLOCK_R": next_power_of_2(rows), "BLOCK_P": next_power_of_2(pairs)}
    return {"ROWS": rows, "PAIRS": pairs, **blocks}


@triton_op("rotary")
def _in_place(packed, sin, cos, halves, backward):
    batch, tokens, _, heads, head_dim = packed.shape
    rotary_kernel[(batch * len(sin),)](
        packed, sin, cos, tokens, len(sin), sin.stride(0), cos.stride(0),
        **constants(heads, head_dim), HALVES=halves, BACKWARD=backward, num_warps=WARPS,
    )  # fmt: skip


def aot_cases(shape: AotShape) -> list[AotCase]:
    """Both pairings, both directions."""
    tables = {"p_sin": "*fp32", "p_cos": "*fp32", "s_sin": shape.head_dim, "s_cos": shape.head_dim}
    return [
        AotCase(
            rotary_kernel,
            {"p_packed": f"*{shape.dtype}", "T": shape.tokens, "N": shape.tokens - 1, **tables},
            {**constants(shape.heads, shape.head_dim), "HALVES": halves, "BACKWARD": backward},
            num_warps=WARPS,
            small_tiles=True,  # a token's angles; halves of no multiple of 16 bytes
            label=f"{'halves' if halves else 'neighbours'}, {'backward' if backward else 'forward'}",
        )
        for halves in (False, True)
        for backward in (False, True)
    ]
