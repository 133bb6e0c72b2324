"""Attention, backward: the kernel that owns a tile of queries; see packed_attention_backward.py."""

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
    query_programs,
    rest_rows,
    softmax_again,
    store_columns,
    store_sums,
    store_tile,
    tile_constants,
)
from eva_fast.kernels.launch import kernel
from eva_fast.kernels.quantise_fp8 import inverse_of, magnitude_bits
from eva_fast.kernels.tiles import Tiles


# fmt: off
@triton.jit
def _dq_step(q_0, q_1, do_0, do_1, acc_0, acc_1, b_lse, b_delta, k_0, k_1, v_0, v_1, p_bias,
             p_mask, o_m, o_n, NQ, NK, scale, EVEN_Q: tl.constexpr, EVEN_K: tl.constexpr):
    """Adds ds k of one tile of keys."""
    o_s, m_s = o_m[:, None] * NK + o_n[None, :], (o_m[:, None] < NQ) & (o_n[None, :] < NK)
    b_p = softmax_again(dot_heads(q_0, q_1, k_0, k_1), b_lse[:, None], p_bias, p_mask, o_s, m_s, scale,
                        EVEN_Q and EVEN_K)  # [queries, keys]
    if not EVEN_K:
        b_p = tl.where(o_n[None, :] < NK, b_p, 0.0)
    b_ds = b_p * (dot_heads(do_0, do_1, v_0, v_1) - b_delta[:, None])
    b_ds = b_ds.to(k_0.dtype)
    acc_0 = tl.dot(b_ds, k_0, acc_0, input_precision="ieee")
    acc_1 = tl.dot(b_ds, k_1, acc_1, input_precision="ieee")
    return acc_0, acc_1


@triton.jit
def _dq_start(p_do, p_q, p_out, p_lse, p_delta, p_columns, p_columns_scale, o_m, NQ, PADDED,
              S_DT: tl.constexpr, S_QT: tl.constexpr, S_OT: tl.constexpr, D: tl.constexpr,
              D0: tl.constexpr, D1: tl.constexpr, EVEN: tl.constexpr):
    """All that belongs to a tile of queries; writes their delta, and out by columns."""
    do_0, do_1 = load_tile(p_do, o_m, NQ, S_DT, D, D0, D1, EVEN)
    out_0, out_1 = load_tile(p_out, o_m, NQ, S_OT, D, D0, D1, EVEN)
    b_delta = tl.sum(do_0.to(tl.float32) * out_0.to(tl.float32), 1)
    b_delta += tl.sum(do_1.to(tl.float32) * out_1.to(tl.float32), 1)
    tl.store(p_delta + o_m, b_delta, mask=o_m < NQ)
    if p_columns is not None:
        inverse = inverse_of(tl.load(p_columns_scale))
        store_columns(p_columns, inverse, out_0, out_1, o_m, NQ, PADDED, D, D0, D1)
    b_lse = tl.load(p_lse + o_m, mask=o_m < NQ, other=0.0)
    q_0, q_1 = load_tile(p_q, o_m, NQ, S_QT, D, D0, D1, EVEN)
    return q_0, q_1, do_0, do_1, b_lse, b_delta


@triton.jit
def _dq_tile(p_do, p_q, p_k, p_v, p_bias, p_mask, p_out, p_lse, p_delta, p_dq, p_sums, p_columns,
             p_columns_scale, p_largest, o_m, NQ, NK, PADDED, scale, S_DT: tl.constexpr,
             S_QT: tl.constexpr, S_KT: tl.constexpr, S_OT: tl.constexpr, S_GT: tl.constexpr,
             D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr,
             BN: tl.constexpr, FIRST_QUERY: tl.constexpr, REST_Q: tl.constexpr,
             REST_K: tl.constexpr, EVEN_Q: tl.constexpr, EVEN_K: tl.constexpr):
    """dq and delta of queries o_m [BM] of one head, and of the rest if REST_Q; p_sums [D]: the sum
    of these dq; p_largest: their largest magnitude."""
    q_0, q_1, do_0, do_1, b_lse, b_delta = _dq_start(
        p_do, p_q, p_out, p_lse, p_delta, p_columns, p_columns_scale, o_m, NQ, PADDED, S_DT, S_QT,
        S_OT, D, D0, D1, EVEN_Q)
    acc_0 = tl.zeros([BM, D0], tl.float32)
    acc_1 = tl.zeros([BM, D1], tl.float32)
    o_x = rest_rows(NK, 1, REST_K)
    k_x0, k_x1 = load_tile(p_k, o_x, NK, S_KT, D, D0, D1, False)
    v_x0, v_x1 = load_tile(p_v, o_x, NK, S_KT, D, D0, D1, False)
    acc_0, acc_1 = _dq_step(q_0, q_1, do_0, do_1, acc_0, acc_1, b_lse, b_delta, k_x0, k_x1, v_x0, v_x1,
                            p_bias, p_mask, o_m, o_x, NQ, NK, scale, EVEN_Q, False)
    if REST_Q:
        o_r = rest_rows(NQ, FIRST_QUERY, REST_Q)
        q_r0, q_r1, do_r0, do_r1, r_lse, r_delta = _dq_start(
            p_do, p_q, p_out, p_lse, p_delta, p_columns, p_columns_scale, o_r, NQ, PADDED, S_DT, S_QT,
            S_OT, D, D0, D1, False)
        acc_r0 = tl.zeros([REST_ROWS, D0], tl.float32)
        acc_r1 = tl.zeros([REST_ROWS, D1], tl.float32)
        acc_r0, acc_r1 = _dq_step(q_r0, q_r1, do_r0, do_r1, acc_r0, acc_r1, r_lse, r_delta, k_x0,
                                  k_x1, v_x0, v_x1, p_bias, p_mask, o_r, o_x, NQ, NK, scale,
                                  False, False)
    for start_n in range(1, NK - REST_K + 1, BN):
        o_n = start_n + tl.arange(0, BN)
        k_0, k_1 = load_tile(p_k, o_n, NK, S_KT, D, D0, D1, EVEN_K)
        v_0, v_1 = load_tile(p_v, o_n, NK, S_KT, D, D0, D1, EVEN_K)
        acc_0, acc_1 = _dq_step(q_0, q_1, do_0, do_1, acc_0, acc_1, b_lse, b_delta, k_0, k_1, v_0,
                                v_1, p_bias, p_mask, o_m, o_n, NQ, NK, scale, EVEN_Q, EVEN_K)
        if REST_Q:
            acc_r0, acc_r1 = _dq_step(q_r0, q_r1, do_r0, do_r1, acc_r0, acc_r1, r_lse, r_delta,
                                      k_0, k_1, v_0, v_1, p_bias, p_mask, o_r, o_n, NQ, NK,
                                      scale, False, EVEN_K)
    # rows past the end have dout = 0, so ds = 0
    acc_0, acc_1 = acc_0 * scale, acc_1 * scale
    store_tile(p_dq, acc_0, acc_1, o_m, NQ, S_GT, D, D0, D1, EVEN_Q)
    if p_largest is not None:
        most = magnitude_bits(largest_of(acc_0, acc_1, p_dq.dtype.element_ty))
    if REST_Q:
        acc_r0, acc_r1 = acc_r0 * scale, acc_r1 * scale
        store_tile(p_dq, acc_r0, acc_r1, o_r, NQ, S_GT, D, D0, D1, False)
        if p_largest is not None:
            rest = largest_of(acc_r0, acc_r1, p_dq.dtype.element_ty)
            most = tl.maximum(most, magnitude_bits(rest))
        # one reduction for both: the rest's sum goes into the first row
        acc_0 += tl.where(tl.arange(0, BM)[:, None] == 0, tl.sum(acc_r0, 0)[None, :], 0.0)
        acc_1 += tl.where(tl.arange(0, BM)[:, None] == 0, tl.sum(acc_r1, 0)[None, :], 0.0)
    store_sums(p_sums, acc_0, acc_1, D, D0, D1)
    if p_largest is not None:
        tl.store(p_largest, most.to(tl.float32, bitcast=True))


@kernel
@triton.jit
def attention_dq_kernel(
    p_do, p_q, p_k, p_v, p_bias, p_mask, p_out, p_lse, p_delta, p_dq, p_sums, p_columns,
    p_columns_scale, p_largest, scale, NQ, NK, PADDED, windows, tiles, s_db, s_qb, s_kb, s_ob, s_gb,
    H: tl.constexpr, S_DT: tl.constexpr, S_DH: tl.constexpr, S_QT: tl.constexpr, S_QH: tl.constexpr,
    S_KT: tl.constexpr, S_KH: tl.constexpr, S_OT: tl.constexpr, S_OH: tl.constexpr,
    S_GT: tl.constexpr, S_GH: tl.constexpr, D: tl.constexpr, D0: tl.constexpr,
    D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, FIRST_QUERY: tl.constexpr,
    REST_Q: tl.constexpr, REST_K: tl.constexpr, BESIDE: tl.constexpr, EVEN_Q: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """One program: a tile of queries of one head; program 0 of a head has the rest, BESIDE its tile
    or alone."""
    pid = tl.program_id(0)
    head = (pid // tiles).to(tl.int64)
    tile = pid % tiles
    batch = head // H
    p_do += batch * s_db + head % H * S_DH
    p_q += batch * s_qb + head % H * S_QH
    p_k += batch * s_kb + head % H * S_KH
    p_v += batch * s_kb + head % H * S_KH
    p_out += batch * s_ob + head % H * S_OH
    p_dq += batch * s_gb + head % H * S_GH
    p_lse += head * NQ
    if p_bias is not None:
        p_bias += head % H * NQ * NK
        if p_mask is not None:
            p_mask += batch % windows * NQ * NK
    p_delta += head * NQ
    p_sums += ((batch * tiles + tile) * H + head % H) * D
    if p_columns is not None:
        p_columns += head % H * D * PADDED + batch * NQ
    if p_largest is not None:
        p_largest += pid
    APART: tl.constexpr = REST_Q > 0 and not BESIDE
    o_m = FIRST_QUERY + (tile - APART) * BM + tl.arange(0, BM)
    if REST_Q > 0 and tile == 0:
        if BESIDE:
            _dq_tile(p_do, p_q, p_k, p_v, p_bias, p_mask, p_out, p_lse, p_delta, p_dq, p_sums,
                     p_columns, p_columns_scale, p_largest, o_m, NQ, NK, PADDED, scale, S_DT,
                     S_QT, S_KT, S_OT, S_GT, D, D0, D1, BM, BN, FIRST_QUERY, REST_Q, REST_K,
                     EVEN_Q, EVEN_K)
        else:
            _dq_tile(p_do, p_q, p_k, p_v, p_bias, p_mask, p_out, p_lse, p_delta, p_dq, p_sums,
                     p_columns, p_columns_scale, p_largest, rest_rows(NQ, FIRST_QUERY, REST_Q), NQ, NK,
                     PADDED, scale, S_DT, S_QT, S_KT,
                     S_OT, S_GT, D, D0, D1, REST_ROWS, BN, FIRST_QUERY, 0, REST_K, False, EVEN_K)
    else:
        _dq_tile(p_do, p_q, p_k, p_v, p_bias, p_mask, p_out, p_lse, p_delta, p_dq, p_sums, p_columns,
                 p_columns_scale, p_largest, o_m, NQ, NK, PADDED, scale, S_DT, S_QT, S_KT,
                 S_OT, S_GT, D, D0, D1, BM, BN, FIRST_QUERY, 0, REST_K, EVEN_Q, EVEN_K)


# fmt: on


def dq_options(
    queries: int, keys: int, head_dim: int, dtype_bytes: int, capability: int
) -> list[Tiles]:
    """Tiles of the dq kernel, the usual ones first."""
    if dtype_bytes == 4:  # full fp32 products, not by tensor cores: larger tiles spill
        return [Tiles(32, 32, 8, 1 if head_dim <= 32 and capability < 90 else 2)]
    if queries <= 33 or head_dim > 128:
        return [Tiles(32, 32, 4, 2)]
    usual = Tiles(64, 32, 4, 2)
    larger = [Tiles(128, 32, 8, 2)] if queries > 64 else []
    found = [usual, usual._replace(stages=3), usual._replace(beside=True), *larger]
    # triton 3.6 spills there with a masked tile of 64 rows
    return [Tiles(32, 32, 4, 2), *found] if capability < 90 and queries != keys else found


def launch_dq(
    dout, q, k, v, out, lse, delta, scale, dq, tiles: Tiles, bias: Bias = NO_BIAS,
    eight: Eight = IN_16_BITS,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Fills dq, delta and the columns of `eight`; returns the sums of dq [programs, 1, H d], for
    `partial_sums`, and parts of its largest magnitude."""
    batch, queries, heads, head_dim = q.shape
    keys, first = k.shape[1], q.shape[1] == k.shape[1]
    programs = query_programs(queries, first, tiles)
    sums = lse.new_empty((batch * programs, 1, heads * head_dim))
    columns, parts, length = eight.columns, None, 1
    if columns is not None:
        parts, length = lse.new_empty(batch * heads * programs), columns.shape[1]
    attention_dq_kernel[(batch * heads * programs,)](
        dout, q, k, v, bias.scores, bias.mask, out, lse, delta, dq, sums, columns,
        eight.scale if columns is not None else None, parts, scale, queries, keys, length,
        bias.windows, programs, dout.stride(0), q.stride(0), k.stride(0), out.stride(0), dq.stride(0),
        S_OT=out.stride(1), S_OH=out.stride(2), S_GT=dq.stride(1), S_GH=dq.stride(2),
        BESIDE=tiles.beside,
        **backward_strides(dout, q, k), **tile_constants(queries, keys, head_dim, first, tiles),
    )  # fmt: skip
    return sums, parts


def aot_cases(shape: AotShape) -> list[AotCase]:
    """The student's calls, and those with a bias."""
    return dq_aot_cases(shape, packed_calls(shape) + biased_calls(shape), False)


def dq_aot_cases(shape: AotShape, calls: list[AotCall], eight: bool) -> list[AotCase]:
    """These calls; eight: with out by columns and the largest magnitudes."""
    found = []
    for call in calls:
        sizes = call.queries, call.keys, call.head_dim, DTYPE_BYTES[shape.dtype]
        tiles = dq_options(*sizes, shape.capability)[0]
        programs = query_programs(call.queries, call.first_query, tiles)
        found.append(
            backward_aot_case(attention_dq_kernel, shape, call, tiles, programs, False, eight)
        )
    return found
