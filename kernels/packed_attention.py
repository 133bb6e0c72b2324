"""Attention for sequences of 1 + n tokens with awkward head sizes, forward.

    s = scale * q k^T,  lse_i = log sum_j exp(s_ij),  out_i = sum_j exp(s_ij - lse_i) v_j

as in FlashAttention-2 (Dao 2023): one program owns a tile of queries and walks over the keys with a
running maximum and sum, so the scores never reach memory.

A ViT's sequence is CLS and n patches, n often a multiple of 64 (257 = 1 + 256). Usual kernels pad it
to the next tile (384 = 3 x 128) and a head of 88 to 128 columns: 2.2 times the work. Here
- the n patches are exact tiles; row 0 and up to 15 patches that are left over share a tile of the
  smallest size that the tensor cores take (16 rows). Of queries that tile is a program of its own,
  or program 0 takes it beside its exact one: one walk over the keys less, but more registers;
  measured. Where more than 15 are left over the last tile is masked,
- a head of d columns is a power of two and a rest (88 = 64 + 24, the rest in a tile of 32).

Tensors are [B, T, H, d] with any strides but the last, out too; lse is fp32 [B, H, T]. Products take
the input's dtype with fp32 sums; fp32 inputs use full fp32 products ("ieee"), never TF32. The strides
of tokens and heads are constants: a head stride of 88 elements is no multiple of 16, so as run-time
values they would cost every 128-bit access.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from eva_fast.kernels.aot_case import DTYPE_BYTES, AotCase, AotShape
from eva_fast.kernels.attention_tiles import (
    IN_16_BITS,
    LOG2E,
    NO_BIAS,
    REST_ROWS,
    AotCall,
    Bias,
    Eight,
    add_bias,
    aot_bias,
    aot_strides,
    biased_calls,
    dot_heads,
    limits,
    load_tile,
    packed_calls,
    query_programs,
    rest_rows,
    same_strides,
    sizes_of,
    store_tile,
    tile_constants,
)
from eva_fast.kernels.launch import kernel, triton_op
from eva_fast.kernels.quantise_fp8 import inverse_of
from eva_fast.kernels.tiles import Tiles, fastest
from eva_fast.ops.checks import contiguous_like

LN2 = tl.constexpr(0.6931471805599453)


# fmt: off
@triton.jit
def _exponential(b_x, p_bias):
    """Of differences of scores, which are in units of log2 where there is no bias. With one, scores
    are larger, and their maximum would round once more on its way into lse."""
    if p_bias is None:
        return tl.exp2(b_x)
    else:
        return tl.exp(b_x)


@triton.jit
def _forward_step(q_0, q_1, acc_0, acc_1, b_max, b_sum, k_0, k_1, v_0, v_1, p_bias, p_mask,
                  o_m, o_n, NQ, NK, scale, EVEN_Q: tl.constexpr, EVEN_K: tl.constexpr):
    """Adds one tile of keys to the running softmax of a tile of queries."""
    b_s = dot_heads(q_0, q_1, k_0, k_1)  # [queries, keys]
    if p_bias is None:
        b_s *= scale * LOG2E
    else:
        m_s = (o_m[:, None] < NQ) & (o_n[None, :] < NK)
        o_s = o_m[:, None] * NK + o_n[None, :]
        b_s = add_bias(b_s * scale, p_bias, p_mask, o_s, m_s, EVEN_Q and EVEN_K)
    if not EVEN_K:
        b_s = tl.where(o_n[None, :] < NK, b_s, float("-inf"))
    new_max = tl.maximum(b_max, tl.max(b_s, 1))
    b_p = _exponential(b_s - new_max[:, None], p_bias)
    b_shrink = _exponential(b_max - new_max, p_bias)
    b_p16 = b_p.to(v_0.dtype)
    acc_0 = tl.dot(b_p16, v_0, acc_0 * b_shrink[:, None], input_precision="ieee")
    acc_1 = tl.dot(b_p16, v_1, acc_1 * b_shrink[:, None], input_precision="ieee")
    return acc_0, acc_1, new_max, b_sum * b_shrink + tl.sum(b_p, 1)


@triton.jit
def _forward_start(ROWS: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """The sums and the softmax of a tile of queries before any key."""
    return (tl.zeros([ROWS, D0], tl.float32), tl.zeros([ROWS, D1], tl.float32),
            tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32))


@triton.jit
def _forward_end(p_bias, p_out, p_eight, p_eight_scale, p_lse, acc_0, acc_1, b_max, b_sum, o_m, NQ,
                 S_OT: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
                 EVEN: tl.constexpr):
    """Writes what a tile of queries got, and once more in 8 bits, as rounded before."""
    acc_0, acc_1 = acc_0 / b_sum[:, None], acc_1 / b_sum[:, None]
    store_tile(p_out, acc_0, acc_1, o_m, NQ, S_OT, D, D0, D1, EVEN)
    if p_eight is not None:
        inverse = inverse_of(tl.load(p_eight_scale))
        acc_0 = acc_0.to(p_out.dtype.element_ty).to(tl.float32) * inverse
        acc_1 = acc_1.to(p_out.dtype.element_ty).to(tl.float32) * inverse
        store_tile(p_eight, acc_0, acc_1, o_m, NQ, S_OT, D, D0, D1, EVEN)
    if p_bias is None:
        b_lse = (b_max + tl.log2(b_sum)) * LN2
    else:
        b_lse = b_max + tl.log2(b_sum) * LN2
    tl.store(p_lse + o_m, b_lse, mask=o_m < NQ)


@triton.jit
def _forward_tile(p_q, p_k, p_v, p_bias, p_mask, p_out, p_eight, p_eight_scale, p_lse, o_m, NQ, NK,
                  scale, S_QT: tl.constexpr, S_KT: tl.constexpr, S_OT: tl.constexpr, D: tl.constexpr,
                  D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                  FIRST_QUERY: tl.constexpr, REST_Q: tl.constexpr, REST_K: tl.constexpr,
                  EVEN_Q: tl.constexpr, EVEN_K: tl.constexpr):
    """Queries o_m [BM] of one head, and the rest if REST_Q, against all keys."""
    q_0, q_1 = load_tile(p_q, o_m, NQ, S_QT, D, D0, D1, EVEN_Q)
    acc_0, acc_1, b_max, b_sum = _forward_start(BM, D0, D1)
    o_x = rest_rows(NK, 1, REST_K)
    k_x0, k_x1 = load_tile(p_k, o_x, NK, S_KT, D, D0, D1, False)
    v_x0, v_x1 = load_tile(p_v, o_x, NK, S_KT, D, D0, D1, False)
    acc_0, acc_1, b_max, b_sum = _forward_step(
        q_0, q_1, acc_0, acc_1, b_max, b_sum, k_x0, k_x1, v_x0, v_x1, p_bias, p_mask, o_m,
        o_x, NQ, NK, scale, EVEN_Q, False)
    if REST_Q:
        o_r = rest_rows(NQ, FIRST_QUERY, REST_Q)
        q_r0, q_r1 = load_tile(p_q, o_r, NQ, S_QT, D, D0, D1, False)
        acc_r0, acc_r1, r_max, r_sum = _forward_start(REST_ROWS, D0, D1)
        acc_r0, acc_r1, r_max, r_sum = _forward_step(
            q_r0, q_r1, acc_r0, acc_r1, r_max, r_sum, k_x0, k_x1, v_x0, v_x1, p_bias, p_mask,
            o_r, o_x, NQ, NK, scale, False, False)
    for start_n in range(1, NK - REST_K + 1, BN):
        o_n = start_n + tl.arange(0, BN)
        k_0, k_1 = load_tile(p_k, o_n, NK, S_KT, D, D0, D1, EVEN_K)
        v_0, v_1 = load_tile(p_v, o_n, NK, S_KT, D, D0, D1, EVEN_K)
        acc_0, acc_1, b_max, b_sum = _forward_step(
            q_0, q_1, acc_0, acc_1, b_max, b_sum, k_0, k_1, v_0, v_1, p_bias, p_mask, o_m, o_n, NQ,
            NK, scale, EVEN_Q, EVEN_K)
        if REST_Q:
            acc_r0, acc_r1, r_max, r_sum = _forward_step(
                q_r0, q_r1, acc_r0, acc_r1, r_max, r_sum, k_0, k_1, v_0, v_1, p_bias, p_mask, o_r, o_n,
                NQ, NK, scale, False, EVEN_K)
    _forward_end(p_bias, p_out, p_eight, p_eight_scale, p_lse, acc_0, acc_1, b_max, b_sum, o_m, NQ,
                 S_OT, D, D0, D1, EVEN_Q)
    if REST_Q:
        _forward_end(p_bias, p_out, p_eight, p_eight_scale, p_lse, acc_r0, acc_r1, r_max, r_sum, o_r, NQ,
                     S_OT, D, D0, D1, False)


@kernel
@triton.jit
def attention_forward_kernel(
    p_q, p_k, p_v, p_bias, p_mask, p_out, p_eight, p_eight_scale, p_lse, scale, NQ, NK, windows, tiles,
    s_qb, s_kb, s_ob,
    H: tl.constexpr, S_QT: tl.constexpr, S_QH: tl.constexpr, S_KT: tl.constexpr,
    S_KH: tl.constexpr, S_OT: tl.constexpr, S_OH: tl.constexpr, D: tl.constexpr, D0: tl.constexpr,
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
    p_q += batch * s_qb + head % H * S_QH
    p_k += batch * s_kb + head % H * S_KH
    p_v += batch * s_kb + head % H * S_KH
    p_out += batch * s_ob + head % H * S_OH
    if p_eight is not None:
        p_eight += batch * s_ob + head % H * S_OH
    p_lse += head * NQ
    if p_bias is not None:
        p_bias += head % H * NQ * NK
        if p_mask is not None:
            p_mask += batch % windows * NQ * NK
    APART: tl.constexpr = REST_Q > 0 and not BESIDE
    o_m = FIRST_QUERY + (tile - APART) * BM + tl.arange(0, BM)
    if REST_Q > 0 and tile == 0:
        if BESIDE:
            _forward_tile(p_q, p_k, p_v, p_bias, p_mask, p_out, p_eight, p_eight_scale, p_lse, o_m, NQ,
                          NK, scale, S_QT, S_KT, S_OT, D, D0, D1, BM, BN, FIRST_QUERY, REST_Q, REST_K,
                          EVEN_Q, EVEN_K)
        else:
            _forward_tile(p_q, p_k, p_v, p_bias, p_mask, p_out, p_eight, p_eight_scale, p_lse,
                          rest_rows(NQ, FIRST_QUERY, REST_Q), NQ, NK, scale, S_QT, S_KT, S_OT,
                          D, D0, D1, REST_ROWS, BN, FIRST_QUERY, 0,
                          REST_K, False, EVEN_K)
    else:
        _forward_tile(p_q, p_k, p_v, p_bias, p_mask, p_out, p_eight, p_eight_scale, p_lse, o_m, NQ, NK,
                      scale, S_QT, S_KT, S_OT, D, D0, D1, BM, BN, FIRST_QUERY, 0, REST_K, EVEN_Q, EVEN_K)
# fmt: on


def forward_options(queries: int, keys: int, head_dim: int, dtype_bytes: int) -> list[Tiles]:
    """Tiles of the forward kernel, the usual ones first."""
    if dtype_bytes == 4:  # full fp32 products, not by tensor cores: larger tiles spill
        return [Tiles(32, 16, 8, 1 if head_dim > 32 else 2)]  # none spills, triton 3.6 or 3.8
    block_m = 64 if queries > 33 else 32
    # scores of 64 x 64 with a bias and a mask, at heads as narrow, spill on sm_100
    block_n = 64 if keys > 33 and 32 < head_dim <= 128 else 32
    usual = Tiles(block_m, block_n, 4, 2)
    if block_m == 32:
        return [usual]
    larger = [Tiles(128, block_n, 8, 2)] if queries > 64 else []
    return [usual, usual._replace(stages=3), Tiles(block_m, 32, 4, 2, beside=True), *larger]


@triton_op("packed_attention", limits=limits)
def forward(q, k, v, scale):
    """Row 0 of the queries is apart where there are as many queries as keys."""
    return run_forward("attention_forward", q, k, v, scale)


def run_forward(
    name: str, q, k, v, scale, bias: Bias = NO_BIAS, eight: Eight = IN_16_BITS
) -> tuple[Tensor, Tensor]:
    """out and lse, by the fastest tiles; name: what they are kept under. Fills what `eight` has."""
    out = contiguous_like(q)
    batch, queries, heads, head_dim = q.shape
    lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
    k, v = same_strides(k, v)
    options = functools.partial(forward_options, queries, k.shape[1], head_dim, q.element_size())
    run = functools.partial(launch_forward, q, k, v, out, lse, scale, bias=bias, eight=eight)
    run(fastest(name, sizes_of(q, k), q.device, options, run))
    return out, lse


def launch_forward(
    q, k, v, out, lse, scale, tiles: Tiles, bias: Bias = NO_BIAS, eight: Eight = IN_16_BITS
) -> None:
    """Fills out and lse; k and v have equal strides."""
    batch, queries, heads, head_dim = q.shape
    keys = k.shape[1]
    first_query = queries == keys
    programs = query_programs(queries, first_query, tiles)
    attention_forward_kernel[(batch * heads * programs,)](
        q, k, v, bias.scores, bias.mask, out, eight.out, eight.scale, lse, scale, queries, keys,
        bias.windows, programs, q.stride(0), k.stride(0), out.stride(0),
        H=heads, S_QT=q.stride(1), S_QH=q.stride(2), S_KT=k.stride(1), S_KH=k.stride(2),
        S_OT=out.stride(1), S_OH=out.stride(2), BESIDE=tiles.beside,
        **tile_constants(queries, keys, head_dim, first_query, tiles),
    )  # fmt: skip


def aot_cases(shape: AotShape) -> list[AotCase]:
    """The student's calls, and those with a bias."""
    return forward_aot_cases(shape, packed_calls(shape) + biased_calls(shape), False)


def forward_aot_cases(shape: AotShape, calls: list[AotCall], eight: bool) -> list[AotCase]:
    """These calls; eight: with out in 8 bits too."""
    found = []
    for call in calls:
        sizes = call.queries, call.keys, call.head_dim
        tiles = forward_options(*sizes, DTYPE_BYTES[shape.dtype])[0]
        strides, (bias_args, no_bias) = aot_strides(call), aot_bias(call)
        constants = dict(tile_constants(*sizes, call.first_query, tiles))
        warps, stages = constants.pop("num_warps"), constants.pop("num_stages")
        args = {
            **dict.fromkeys(("p_q", "p_k", "p_v", "p_out"), f"*{shape.dtype}"), "p_lse": "*fp32",
            "scale": call.head_dim**-0.5, "NQ": call.queries, "NK": call.keys,
            "tiles": query_programs(call.queries, call.first_query, tiles),
            "s_qb": call.queries * strides["S_QT"], "s_kb": call.keys * strides["S_KT"],
            "s_ob": call.queries * strides["S_OT"], **bias_args,
        }  # fmt: skip
        constants |= {"H": call.heads, "BESIDE": tiles.beside, **strides, **no_bias}
        for name, pointer in (("p_eight", "*fp8e4nv"), ("p_eight_scale", "*fp32")):
            (args if eight else constants)[name] = pointer if eight else None
        found.append(
            AotCase(
                attention_forward_kernel, args, constants, warps, stages, shape.tensor_cores,
                call.label, small_tiles=True,
            )
        )  # fmt: skip
    return found
