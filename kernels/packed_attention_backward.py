"""Attention, backward: one kernel for dq and one for dk and dv, no atomics.

    delta_i = sum_c dout_ic out_ic,   p_ij = exp(s_ij - lse_i),   dp = dout v^T
    ds = p * (dp - delta),   dq = scale ds k,   dk = scale ds^T q,   dv = p^T dout

(Dao 2023, FlashAttention-2, algorithm 2.) The dq kernel owns a tile of queries, walks over the keys
and writes delta for the second kernel, which owns a tile of keys and walks over the queries. Tiles
are those of `packed_attention.py`: row 0 apart, exact tiles, the head in two parts.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import kernel, triton_op
from eva_fast.kernels.packed_attention import (
    FIRST,
    LOG2E,
    aot_strides,
    dot_heads,
    forward,
    limits,
    load_tile,
    same_strides,
    split_head,
    store_tile,
    tiles_a_head,
)


# fmt: off
@triton.jit
def _dq_step(q_0, q_1, do_0, do_1, acc_0, acc_1, b_lse2, b_delta, p_k, p_v, o_n, limit, scale_log2,
             S_KT: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
             EVEN: tl.constexpr):
    """Adds ds k of one tile of keys."""
    k_0, k_1 = load_tile(p_k, o_n, limit, S_KT, D, D0, D1, EVEN)
    b_p = tl.exp2(dot_heads(q_0, q_1, k_0, k_1) * scale_log2 - b_lse2[:, None])  # [BM, BN]
    if not EVEN:
        b_p = tl.where(o_n[None, :] < limit, b_p, 0.0)
    v_0, v_1 = load_tile(p_v, o_n, limit, S_KT, D, D0, D1, EVEN)
    b_ds = b_p * (dot_heads(do_0, do_1, v_0, v_1) - b_delta[:, None])
    b_ds = b_ds.to(k_0.dtype)
    acc_0 = tl.dot(b_ds, k_0, acc_0, input_precision="ieee")
    acc_1 = tl.dot(b_ds, k_1, acc_1, input_precision="ieee")
    return acc_0, acc_1


@triton.jit
def _dq_tile(p_do, p_q, p_k, p_v, p_out, p_lse, p_delta, p_dq, start, limit, NK, scale, scale_log2,
             S_DT: tl.constexpr, S_QT: tl.constexpr, S_KT: tl.constexpr, S_OT: tl.constexpr,
             S_GT: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
             BM: tl.constexpr, BN: tl.constexpr, EVEN_Q: tl.constexpr, EVEN_K: tl.constexpr):
    """dq of queries start .. start + BM of one head, and their delta."""
    o_m = start + tl.arange(0, BM)
    do_0, do_1 = load_tile(p_do, o_m, limit, S_DT, D, D0, D1, EVEN_Q)
    out_0, out_1 = load_tile(p_out, o_m, limit, S_OT, D, D0, D1, EVEN_Q)
    b_delta = tl.sum(do_0.to(tl.float32) * out_0.to(tl.float32), 1)
    b_delta += tl.sum(do_1.to(tl.float32) * out_1.to(tl.float32), 1)
    tl.store(p_delta + o_m, b_delta, mask=o_m < limit)
    b_lse2 = tl.load(p_lse + o_m, mask=o_m < limit, other=0.0) * LOG2E
    q_0, q_1 = load_tile(p_q, o_m, limit, S_QT, D, D0, D1, EVEN_Q)
    acc_0 = tl.zeros([BM, D0], tl.float32)
    acc_1 = tl.zeros([BM, D1], tl.float32)
    acc_0, acc_1 = _dq_step(q_0, q_1, do_0, do_1, acc_0, acc_1, b_lse2, b_delta, p_k, p_v,
                            tl.arange(0, FIRST), 1, scale_log2, S_KT, D, D0, D1, False)
    for start_n in range(1, NK, BN):
        acc_0, acc_1 = _dq_step(q_0, q_1, do_0, do_1, acc_0, acc_1, b_lse2, b_delta, p_k, p_v,
                                start_n + tl.arange(0, BN), NK, scale_log2, S_KT, D, D0, D1, EVEN_K)
    store_tile(p_dq, acc_0 * scale, acc_1 * scale, o_m, limit, S_GT, D, D0, D1, EVEN_Q)


@kernel
@triton.jit
def attention_dq_kernel(
    p_do, p_q, p_k, p_v, p_out, p_lse, p_delta, p_dq, scale, NQ, NK, tiles, s_db, s_qb, s_kb, s_ob,
    s_gb, H: tl.constexpr, S_DT: tl.constexpr, S_DH: tl.constexpr, S_QT: tl.constexpr,
    S_QH: tl.constexpr, S_KT: tl.constexpr, S_KH: tl.constexpr, S_OT: tl.constexpr,
    S_OH: tl.constexpr, S_GT: tl.constexpr, S_GH: tl.constexpr, D: tl.constexpr, D0: tl.constexpr,
    D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, FIRST_QUERY: tl.constexpr,
    EVEN_Q: tl.constexpr, EVEN_K: tl.constexpr,
):
    """One program: a tile of queries of one head."""
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
    p_delta += head * NQ
    scale_log2 = scale * LOG2E
    if FIRST_QUERY:
        if tile == 0:
            _dq_tile(p_do, p_q, p_k, p_v, p_out, p_lse, p_delta, p_dq, 0, 1, NK, scale, scale_log2,
                     S_DT, S_QT, S_KT, S_OT, S_GT, D, D0, D1, FIRST, BN, False, EVEN_K)
        else:
            _dq_tile(p_do, p_q, p_k, p_v, p_out, p_lse, p_delta, p_dq, 1 + (tile - 1) * BM, NQ, NK,
                     scale, scale_log2, S_DT, S_QT, S_KT, S_OT, S_GT, D, D0, D1, BM, BN, EVEN_Q,
                     EVEN_K)
    else:
        _dq_tile(p_do, p_q, p_k, p_v, p_out, p_lse, p_delta, p_dq, tile * BM, NQ, NK, scale,
                 scale_log2, S_DT, S_QT, S_KT, S_OT, S_GT, D, D0, D1, BM, BN, EVEN_Q, EVEN_K)


@triton.jit
def _dkv_step(k_0, k_1, v_0, v_1, dk_0, dk_1, dv_0, dv_1, p_do, p_q, p_lse, p_delta, o_m, limit,
              scale_log2, S_DT: tl.constexpr, S_QT: tl.constexpr, D: tl.constexpr,
              D0: tl.constexpr, D1: tl.constexpr, EVEN: tl.constexpr):
    """Adds ds^T q and p^T dout of one tile of queries."""
    q_0, q_1 = load_tile(p_q, o_m, limit, S_QT, D, D0, D1, EVEN)
    # exp2(s - inf) = 0: queries past the end take no part
    b_lse2 = tl.load(p_lse + o_m, mask=o_m < limit, other=float("inf")) * LOG2E
    b_p = tl.exp2(dot_heads(k_0, k_1, q_0, q_1) * scale_log2 - b_lse2[None, :])  # [BN, BM]
    do_0, do_1 = load_tile(p_do, o_m, limit, S_DT, D, D0, D1, EVEN)
    b_p16 = b_p.to(do_0.dtype)
    dv_0 = tl.dot(b_p16, do_0, dv_0, input_precision="ieee")
    dv_1 = tl.dot(b_p16, do_1, dv_1, input_precision="ieee")
    b_delta = tl.load(p_delta + o_m, mask=o_m < limit, other=0.0)
    b_ds = b_p * (dot_heads(v_0, v_1, do_0, do_1) - b_delta[None, :])
    b_ds = b_ds.to(q_0.dtype)
    dk_0 = tl.dot(b_ds, q_0, dk_0, input_precision="ieee")
    dk_1 = tl.dot(b_ds, q_1, dk_1, input_precision="ieee")
    return dk_0, dk_1, dv_0, dv_1


@triton.jit
def _dkv_tile(p_do, p_q, p_k, p_v, p_lse, p_delta, p_dk, p_dv, start, limit, NQ, scale, scale_log2,
              S_DT: tl.constexpr, S_QT: tl.constexpr, S_KT: tl.constexpr, S_GT: tl.constexpr,
              D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr,
              BN: tl.constexpr, FIRST_QUERY: tl.constexpr, EVEN_Q: tl.constexpr,
              EVEN_K: tl.constexpr):
    """dk and dv of keys start .. start + BN of one head."""
    o_n = start + tl.arange(0, BN)
    k_0, k_1 = load_tile(p_k, o_n, limit, S_KT, D, D0, D1, EVEN_K)
    v_0, v_1 = load_tile(p_v, o_n, limit, S_KT, D, D0, D1, EVEN_K)
    dk_0 = tl.zeros([BN, D0], tl.float32)
    dk_1 = tl.zeros([BN, D1], tl.float32)
    dv_0 = tl.zeros([BN, D0], tl.float32)
    dv_1 = tl.zeros([BN, D1], tl.float32)
    for start_m in range(1 if FIRST_QUERY else 0, NQ, BM):
        dk_0, dk_1, dv_0, dv_1 = _dkv_step(
            k_0, k_1, v_0, v_1, dk_0, dk_1, dv_0, dv_1, p_do, p_q, p_lse, p_delta,
            start_m + tl.arange(0, BM), NQ, scale_log2, S_DT, S_QT, D, D0, D1, EVEN_Q)
    if FIRST_QUERY:
        dk_0, dk_1, dv_0, dv_1 = _dkv_step(
            k_0, k_1, v_0, v_1, dk_0, dk_1, dv_0, dv_1, p_do, p_q, p_lse, p_delta,
            tl.arange(0, FIRST), 1, scale_log2, S_DT, S_QT, D, D0, D1, False)
    store_tile(p_dk, dk_0 * scale, dk_1 * scale, o_n, limit, S_GT, D, D0, D1, EVEN_K)
    store_tile(p_dv, dv_0, dv_1, o_n, limit, S_GT, D, D0, D1, EVEN_K)


@kernel
@triton.jit
def attention_dkv_kernel(
    p_do, p_q, p_k, p_v, p_lse, p_delta, p_dk, p_dv, scale, NQ, NK, tiles, s_db, s_qb, s_kb, s_gb,
    H: tl.constexpr, S_DT: tl.constexpr, S_DH: tl.constexpr, S_QT: tl.constexpr,
    S_QH: tl.constexpr, S_KT: tl.constexpr, S_KH: tl.constexpr, S_GT: tl.constexpr,
    S_GH: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, FIRST_QUERY: tl.constexpr, EVEN_Q: tl.constexpr, EVEN_K: tl.constexpr,
):
    """One program: a tile of keys of one head; program 0 of a head has row 0."""
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
    p_delta += head * NQ
    scale_log2 = scale * LOG2E
    if tile == 0:
        _dkv_tile(p_do, p_q, p_k, p_v, p_lse, p_delta, p_dk, p_dv, 0, 1, NQ, scale, scale_log2,
                  S_DT, S_QT, S_KT, S_GT, D, D0, D1, BM, FIRST, FIRST_QUERY, EVEN_Q, False)
    else:
        _dkv_tile(p_do, p_q, p_k, p_v, p_lse, p_delta, p_dk, p_dv, 1 + (tile - 1) * BN, NK, NQ,
                  scale, scale_log2, S_DT, S_QT, S_KT, S_GT, D, D0, D1, BM, BN, FIRST_QUERY, EVEN_Q,
                  EVEN_K)
# fmt: on


def backward_config(
    queries: int, keys: int, head_dim: int, first_query: bool, own_keys: bool
) -> dict[str, Any]:
    """Constants and launch options of the dkv kernel (own_keys) or the dq kernel."""
    wide = 64 if head_dim <= 128 else 32
    block_m, block_n = (32, wide) if own_keys else (wide, 32)
    block_m = block_m if queries - first_query > 32 else 32
    block_n = block_n if keys > 33 else 32
    first, rest = split_head(head_dim)
    return {
        "D": head_dim, "D0": first, "D1": rest, "BM": block_m, "BN": block_n,
        "FIRST_QUERY": first_query,
        "EVEN_Q": (queries - first_query) % block_m == 0,
        "EVEN_K": (keys - 1) % block_n == 0,
        "num_warps": 4,
        "num_stages": 2,
    }  # fmt: skip


@triton_op("packed_attention_backward", limits=limits)
def _backward(dout, q, k, v, out, lse, scale, dq, dk, dv, again):
    if out is None:
        out = again.copy_(forward(q, k, v, scale)[0])
    k, v = same_strides(k, v)
    own_k, own_v = (dk, dv) if dk.stride() == dv.stride() else map(torch.empty_like, (k, v))
    _launch(dout, q, k, v, out, lse, scale, dq, own_k, own_v)
    if own_k is not dk:
        dk.copy_(own_k)
        dv.copy_(own_v)


def _launch(dout, q, k, v, out, lse, scale, dq, dk, dv) -> None:
    """Both kernels, on k and v of equal strides, and dk and dv likewise."""
    batch, queries, heads, head_dim = q.shape
    keys, first = k.shape[1], q.shape[1] == k.shape[1]
    delta = torch.empty_like(lse)
    common = {
        "H": heads, "S_DT": dout.stride(1), "S_DH": dout.stride(2), "S_QT": q.stride(1),
        "S_QH": q.stride(2), "S_KT": k.stride(1), "S_KH": k.stride(2),
    }  # fmt: skip
    config = backward_config(queries, keys, head_dim, first, own_keys=False)
    tiles = tiles_a_head(queries, config["BM"], first)
    attention_dq_kernel[(batch * heads * tiles,)](
        dout, q, k, v, out, lse, delta, dq, scale, queries, keys, tiles, dout.stride(0),
        q.stride(0), k.stride(0), out.stride(0), dq.stride(0), S_OT=out.stride(1),
        S_OH=out.stride(2), S_GT=dq.stride(1), S_GH=dq.stride(2), **common, **config,
    )  # fmt: skip
    config = backward_config(queries, keys, head_dim, first, own_keys=True)
    tiles = tiles_a_head(keys, config["BN"], True)
    attention_dkv_kernel[(batch * heads * tiles,)](
        dout, q, k, v, lse, delta, dk, dv, scale, queries, keys, tiles, dout.stride(0),
        q.stride(0), k.stride(0), dk.stride(0), S_GT=dk.stride(1), S_GH=dk.stride(2),
        **common, **config,
    )  # fmt: skip


def aot_cases(shape: AotShape) -> list[AotCase]:
    """dq and dk/dv, of the whole sequence and of the last block's masked queries."""
    found = []
    pointer, tokens = f"*{shape.dtype}", shape.tokens
    for masked in (False, True):
        queries = shape.masked if masked else tokens
        strides = aot_strides(shape, masked)
        outer = {"S_DT": shape.width, "S_DH": shape.head_dim}
        for own_keys in (False, True):
            config = backward_config(queries, tokens, shape.head_dim, not masked, own_keys)
            warps, stages = config.pop("num_warps"), config.pop("num_stages")
            tiles = (
                tiles_a_head(tokens, config["BN"], True)
                if own_keys
                else tiles_a_head(queries, config["BM"], not masked)
            )
            args: dict[str, Any] = dict.fromkeys(
                ("p_do", "p_q", "p_k", "p_v", "p_out", "p_dq", "p_dk", "p_dv"), pointer
            )
            args |= {
                "p_lse": "*fp32", "p_delta": "*fp32", "scale": shape.head_dim**-0.5,
                "NQ": queries, "NK": tokens, "tiles": tiles, "s_db": queries * shape.width,
                "s_qb": queries * strides["S_QT"], "s_kb": tokens * strides["S_KT"],
                "s_ob": queries * shape.width,
                "s_gb": (tokens if own_keys else queries) * strides["S_KT" if own_keys else "S_QT"],
            }  # fmt: skip
            grads = strides["S_KT" if own_keys else "S_QT"]
            constants = {"H": shape.heads, **strides, **outer, **config, "S_GT": grads,
                         "S_GH": shape.head_dim}  # fmt: skip
            kernel = attention_dkv_kernel if own_keys else attention_dq_kernel
            label = "masked queries" if masked else ""
            found.append(AotCase(kernel, args, constants, warps, stages, True, label, True))
    return found
