"""Attention, backward: the kernel that owns a tile of keys; see packed_attention_backward.py."""

import torch
import triton
import triton.language as tl

from eva_fast.kernels.aot_case import DTYPE_BYTES, AotCase, AotShape
from eva_fast.kernels.attention_tiles import (
    IN_16_BITS,
    NO_BIAS,
    REST_ROWS,
    AotCall,
    Bias,
    Eight,
    backward_aot_case,
    backward_strides,
    biased_calls,
    dot_heads,
    largest_of,
    load_tile,
    packed_calls,
    rest_rows,
    softmax_again,
    split_rows,
    store_sums,
    store_tile,
    tile_constants,
)
from eva_fast.kernels.launch import kernel
from eva_fast.kernels.quantise_fp8 import magnitude_bits
from eva_fast.kernels.tiles import Tiles


# fmt: off
@triton.jit
def _dkv_step(k_0, k_1, v_0, v_1, dk_0, dk_1, dv_0, dv_1, p_do, p_q, p_bias, p_mask, p_lse,
              p_delta, o_m, o_n, NQ, NK, scale, S_DT: tl.constexpr, S_QT: tl.constexpr,
              D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, EVEN: tl.constexpr,
              EVEN_K: tl.constexpr):
    """Adds ds^T q and p^T dout of one tile of queries."""
    q_0, q_1 = load_tile(p_q, o_m, NQ, S_QT, D, D0, D1, EVEN)
    # exp2(s - inf) = 0: queries past the end take no part
    b_lse = tl.load(p_lse + o_m, mask=o_m < NQ, other=float("inf"))
    o_s, m_s = o_m[None, :] * NK + o_n[:, None], (o_m[None, :] < NQ) & (o_n[:, None] < NK)
    b_p = softmax_again(dot_heads(k_0, k_1, q_0, q_1), b_lse[None, :], p_bias, p_mask, o_s, m_s, scale,
                        EVEN and EVEN_K)  # [BN, BM]
    do_0, do_1 = load_tile(p_do, o_m, NQ, S_DT, D, D0, D1, EVEN)
    b_p16 = b_p.to(do_0.dtype)
    dv_0 = tl.dot(b_p16, do_0, dv_0, input_precision="ieee")
    dv_1 = tl.dot(b_p16, do_1, dv_1, input_precision="ieee")
    b_delta = tl.load(p_delta + o_m, mask=o_m < NQ, other=0.0)
    b_ds = b_p * (dot_heads(v_0, v_1, do_0, do_1) - b_delta[None, :])
    b_ds = b_ds.to(q_0.dtype)
    dk_0 = tl.dot(b_ds, q_0, dk_0, input_precision="ieee")
    dk_1 = tl.dot(b_ds, q_1, dk_1, input_precision="ieee")
    return dk_0, dk_1, dv_0, dv_1


@triton.jit
def _dkv_tile(p_do, p_q, p_k, p_v, p_bias, p_mask, p_lse, p_delta, p_dk, p_dv, p_sums, p_largest, o_n,
              NQ, NK, scale, S_DT: tl.constexpr, S_QT: tl.constexpr, S_KT: tl.constexpr,
              S_GT: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr,
              BN: tl.constexpr, FIRST_QUERY: tl.constexpr, REST_Q: tl.constexpr,
              EVEN_Q: tl.constexpr, EVEN_K: tl.constexpr):
    """dk and dv of keys o_n [BN] of one head; p_sums [D]: the sum of these dv; p_largest: their
    largest magnitude."""
    k_0, k_1 = load_tile(p_k, o_n, NK, S_KT, D, D0, D1, EVEN_K)
    v_0, v_1 = load_tile(p_v, o_n, NK, S_KT, D, D0, D1, EVEN_K)
    dk_0 = tl.zeros([BN, D0], tl.float32)
    dk_1 = tl.zeros([BN, D1], tl.float32)
    dv_0 = tl.zeros([BN, D0], tl.float32)
    dv_1 = tl.zeros([BN, D1], tl.float32)
    for start_m in range(FIRST_QUERY, NQ - REST_Q + FIRST_QUERY, BM):
        dk_0, dk_1, dv_0, dv_1 = _dkv_step(
            k_0, k_1, v_0, v_1, dk_0, dk_1, dv_0, dv_1, p_do, p_q, p_bias, p_mask,
            p_lse, p_delta, start_m + tl.arange(0, BM), o_n, NQ, NK, scale, S_DT, S_QT, D, D0,
            D1, EVEN_Q, EVEN_K)
    if REST_Q:
        dk_0, dk_1, dv_0, dv_1 = _dkv_step(
            k_0, k_1, v_0, v_1, dk_0, dk_1, dv_0, dv_1, p_do, p_q, p_bias, p_mask,
            p_lse, p_delta, rest_rows(NQ, FIRST_QUERY, REST_Q), o_n, NQ, NK, scale, S_DT, S_QT,
            D, D0, D1, False, EVEN_K)
    dk_0, dk_1 = dk_0 * scale, dk_1 * scale
    store_tile(p_dk, dk_0, dk_1, o_n, NK, S_GT, D, D0, D1, EVEN_K)
    store_tile(p_dv, dv_0, dv_1, o_n, NK, S_GT, D, D0, D1, EVEN_K)
    if not EVEN_K:  # a key past the end, all zeros, has a probability
        m_n = o_n[:, None] < NK
        dv_0, dv_1 = tl.where(m_n, dv_0, 0.0), tl.where(m_n, dv_1, 0.0)
        if p_largest is not None:
            dk_0, dk_1 = tl.where(m_n, dk_0, 0.0), tl.where(m_n, dk_1, 0.0)
    store_sums(p_sums, dv_0, dv_1, D, D0, D1)
    if p_largest is not None:
        element = p_dk.dtype.element_ty
        most = tl.maximum(
            magnitude_bits(largest_of(dk_0, dk_1, element)),
            magnitude_bits(largest_of(dv_0, dv_1, element)))
        tl.store(p_largest, most.to(tl.float32, bitcast=True))


@kernel
@triton.jit
def attention_dkv_kernel(
    p_do, p_q, p_k, p_v, p_bias, p_mask, p_lse, p_delta, p_dk, p_dv, p_sums, p_largest, scale, NQ, NK,
    windows, tiles, s_db, s_qb, s_kb, s_gb,
    H: tl.constexpr, S_DT: tl.constexpr, S_DH: tl.constexpr, S_QT: tl.constexpr,
    S_QH: tl.constexpr, S_KT: tl.constexpr, S_KH: tl.constexpr, S_GT: tl.constexpr,
    S_GH: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, FIRST_QUERY: tl.constexpr, REST_Q: tl.constexpr, REST_K: tl.constexpr,
    EVEN_Q: tl.constexpr, EVEN_K: tl.constexpr,
):
    """One program: a tile of keys of one head; program 0 of a head has the rest."""
    pid = tl.program_id(0)
    head = (pid // tiles).to(tl.int64)
    tile = pid % tiles
    batch = head // H
    p_do += batch * s_db + head % H * S_DH
    p_q += batch * s_qb + head % H * S_QH
    p_k += batch * s_kb + head % H * S_KH
    p_v += batch * s_kb + head % H * S_KH
    p_dk += batch * s_gb + head % H * S_GH
    p_dv += batch * s_gb + head % H * S_GH
    p_lse += head * NQ
    if p_bias is not None:
        p_bias += head % H * NQ * NK
        if p_mask is not None:
            p_mask += batch % windows * NQ * NK
    p_delta += head * NQ
    p_sums += ((batch * tiles + tile) * H + head % H) * D
    if p_largest is not None:
        p_largest += pid
    if tile == 0:
        _dkv_tile(p_do, p_q, p_k, p_v, p_bias, p_mask, p_lse, p_delta, p_dk, p_dv, p_sums,
                  p_largest, rest_rows(NK, 1, REST_K), NQ, NK, scale, S_DT, S_QT, S_KT, S_GT, D, D0,
                  D1, BM, REST_ROWS, FIRST_QUERY, REST_Q, EVEN_Q, False)
    else:
        o_n = 1 + (tile - 1) * BN + tl.arange(0, BN)
        _dkv_tile(p_do, p_q, p_k, p_v, p_bias, p_mask, p_lse, p_delta, p_dk, p_dv, p_sums,
                  p_largest, o_n, NQ, NK, scale, S_DT, S_QT, S_KT, S_GT, D, D0, D1, BM, BN,
                  FIRST_QUERY, REST_Q, EVEN_Q, EVEN_K)
# fmt: on


def dkv_options(
    queries: int, keys: int, head_dim: int, dtype_bytes: int, capability: int, biased: bool = False
) -> list[Tiles]:
    """Tiles of the dkv kernel, the usual ones first."""
    if dtype_bytes == 4:
        return [Tiles(32, 16 if capability >= 100 or (biased and capability < 90) else 32, 8, 2)]
    if keys <= 33 or head_dim > 128:
        return [Tiles(32, 32, 4, 2)]
    four, eight = Tiles(32, 64, 4, 2), Tiles(32, 64, 8, 2)
    usual = [four, eight]
    if head_dim > 32 and capability >= 100:
        usual = [eight, four]  # triton spills there with 4 warps
    elif head_dim > 32 and capability < 90 and biased:
        usual = [Tiles(32, 32, 4, 1), eight, four]  # triton 3.6 spills in 64 keys, 3.8 may
    elif capability < 90 and head_dim <= 64:
        usual = [four._replace(stages=1), four]  # and there with two stages
    larger = [Tiles(64, 128, 8, 2)] if keys > 64 and capability >= 90 else []
    return [*usual, Tiles(64, 64, 8, 2), *larger]


def key_programs(keys: int, tiles: Tiles) -> int:
    """Programs that share the keys of one head."""
    return 1 + split_rows(keys, tiles.block_n, True).tiles


def launch_dkv(
    dout, q, k, v, lse, delta, scale, dk, dv, tiles: Tiles, bias: Bias = NO_BIAS,
    eight: Eight = IN_16_BITS,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Fills dk and dv from the delta of `launch_dq`; returns the sums of dv [programs, 1, H d], and
    parts of the largest magnitude of both."""
    batch, queries, heads, head_dim = q.shape
    keys, first = k.shape[1], q.shape[1] == k.shape[1]
    programs = key_programs(keys, tiles)
    sums = lse.new_empty((batch * programs, 1, heads * head_dim))
    parts = lse.new_empty(batch * heads * programs) if eight.columns is not None else None
    attention_dkv_kernel[(batch * heads * programs,)](
        dout, q, k, v, bias.scores, bias.mask, lse, delta, dk, dv, sums, parts, scale, queries, keys,
        bias.windows, programs, dout.stride(0),
        q.stride(0), k.stride(0), dk.stride(0), S_GT=dk.stride(1), S_GH=dk.stride(2),
        **backward_strides(dout, q, k), **tile_constants(queries, keys, head_dim, first, tiles),
    )  # fmt: skip
    return sums, parts


def aot_cases(shape: AotShape) -> list[AotCase]:
    """The student's calls, and those with a bias."""
    return dkv_aot_cases(shape, packed_calls(shape) + biased_calls(shape), False)


def dkv_aot_cases(shape: AotShape, calls: list[AotCall], eight: bool) -> list[AotCase]:
    """These calls; eight: with the largest magnitudes."""
    found = []
    for call in calls:
        sizes = call.queries, call.keys, call.head_dim, DTYPE_BYTES[shape.dtype]
        tiles = dkv_options(*sizes, shape.capability, call.biased)[0]
        programs = key_programs(call.keys, tiles)
        found.append(
            backward_aot_case(attention_dkv_kernel, shape, call, tiles, programs, True, eight)
        )
    return found
