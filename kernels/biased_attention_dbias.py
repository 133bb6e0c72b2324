"""Attention, backward: the gradient of the scores' bias; see packed_attention_backward.py.

    dbias_ij = sum over images of p_ij (dp_ij - delta_i)

One program owns a tile of one head's bias, which stays in registers, and walks over images (or
windows) from the saved lse and delta. Where heads and tiles are too few for a GPU the images are
split: each part has a sum of its own, and the parts are added in order. No atomics: the same bits
every time.
"""

import triton
import triton.language as tl

from eva_fast.kernels.aot_case import DTYPE_BYTES, AotCase, AotShape
from eva_fast.kernels.attention_tiles import (
    REST_ROWS,
    aot_bias,
    aot_strides,
    backward_strides,
    biased_calls,
    dot_heads,
    load_tile,
    rest_rows,
    split_rows,
    tile_constants,
)
from eva_fast.kernels.launch import cdiv, kernel
from eva_fast.kernels.partial_sums import sum_into
from eva_fast.kernels.tiles import Tiles

# Wanted: some for each of a GPU's multiprocessors. The same on all of them, and so are the sums.
PROGRAMS = 512


# fmt: off
@triton.jit
def _dbias_tile(p_do, p_q, p_k, p_v, p_bias, p_mask, p_lse, p_delta, p_sums, o_m, o_n, NQ, NK, first,
                last, windows, scale, s_db, s_qb, s_kb, H: tl.constexpr, S_DT: tl.constexpr,
                S_QT: tl.constexpr, S_KT: tl.constexpr, D: tl.constexpr, D0: tl.constexpr,
                D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, EVEN_Q: tl.constexpr,
                EVEN_K: tl.constexpr):
    """The sum of queries o_m [BM] and keys o_n [BN] over images first to last."""
    o_s = o_m[:, None] * NK + o_n[None, :]
    m_s = (o_m[:, None] < NQ) & (o_n[None, :] < NK)
    b_bias = tl.load(p_bias + o_s, mask=m_s, other=0.0)
    acc = tl.zeros([BM, BN], tl.float32)
    for image in range(first, last):
        q_0, q_1 = load_tile(p_q, o_m, NQ, S_QT, D, D0, D1, EVEN_Q)
        k_0, k_1 = load_tile(p_k, o_n, NK, S_KT, D, D0, D1, EVEN_K)
        b_s = dot_heads(q_0, q_1, k_0, k_1) * scale + b_bias  # [BM, BN]
        if p_mask is not None:
            b_s += tl.load(p_mask + image % windows * NQ * NK + o_s, mask=m_s, other=0.0)
        # exp(s - inf) = 0: queries past the end take no part
        b_lse = tl.load(p_lse + o_m, mask=o_m < NQ, other=float("inf"))
        b_p = tl.exp(b_s - b_lse[:, None])
        do_0, do_1 = load_tile(p_do, o_m, NQ, S_DT, D, D0, D1, EVEN_Q)
        v_0, v_1 = load_tile(p_v, o_n, NK, S_KT, D, D0, D1, EVEN_K)
        b_delta = tl.load(p_delta + o_m, mask=o_m < NQ, other=0.0)
        acc += b_p * (dot_heads(do_0, do_1, v_0, v_1) - b_delta[:, None])
        p_do += s_db
        p_q += s_qb
        p_k += s_kb
        p_v += s_kb
        p_lse += H * NQ
        p_delta += H * NQ
    tl.store(p_sums + o_s, acc, mask=m_s)


@kernel
@triton.jit
def attention_dbias_kernel(
    p_do, p_q, p_k, p_v, p_bias, p_mask, p_lse, p_delta, p_sums, scale, NQ, NK, images, parts, windows,
    tiles_m, tiles_n, s_db, s_qb, s_kb, H: tl.constexpr, S_DT: tl.constexpr, S_DH: tl.constexpr,
    S_QT: tl.constexpr, S_QH: tl.constexpr, S_KT: tl.constexpr, S_KH: tl.constexpr, D: tl.constexpr,
    D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, FIRST_QUERY: tl.constexpr,
    REST_Q: tl.constexpr, REST_K: tl.constexpr, EVEN_Q: tl.constexpr, EVEN_K: tl.constexpr,
):
    """One program: a tile of one head for one part of the images. p_sums: [parts, H, NQ, NK]."""
    pid = tl.program_id(0)
    tile_n = pid % tiles_n
    tile_m = pid // tiles_n % tiles_m
    head = (pid // (tiles_n * tiles_m) % H).to(tl.int64)
    part = pid // (tiles_n * tiles_m * H)
    first = part * images // parts
    last = (part + 1) * images // parts
    row = first.to(tl.int64) * H + head  # of lse: of this head in the first image
    p_do += first.to(tl.int64) * s_db + head * S_DH
    p_q += first.to(tl.int64) * s_qb + head * S_QH
    p_k += first.to(tl.int64) * s_kb + head * S_KH
    p_v += first.to(tl.int64) * s_kb + head * S_KH
    p_bias += head * NQ * NK
    p_lse += row * NQ
    p_delta += row * NQ
    p_sums += (part * H + head) * NQ * NK
    HAS_REST: tl.constexpr = REST_Q > 0
    o_m = FIRST_QUERY + (tile_m - HAS_REST) * BM + tl.arange(0, BM)
    o_n = 1 + (tile_n - 1) * BN + tl.arange(0, BN)
    o_r = rest_rows(NQ, FIRST_QUERY, REST_Q)
    o_x = rest_rows(NK, 1, REST_K)
    if HAS_REST and tile_m == 0:
        if tile_n == 0:
            _dbias_tile(p_do, p_q, p_k, p_v, p_bias, p_mask, p_lse, p_delta, p_sums, o_r, o_x, NQ, NK,
                        first, last, windows, scale, s_db, s_qb, s_kb, H, S_DT, S_QT, S_KT, D, D0,
                        D1, REST_ROWS, REST_ROWS, False, False)
        else:
            _dbias_tile(p_do, p_q, p_k, p_v, p_bias, p_mask, p_lse, p_delta, p_sums, o_r, o_n, NQ, NK,
                        first, last, windows, scale, s_db, s_qb, s_kb, H, S_DT, S_QT, S_KT, D, D0,
                        D1, REST_ROWS, BN, False, EVEN_K)
    elif tile_n == 0:
        _dbias_tile(p_do, p_q, p_k, p_v, p_bias, p_mask, p_lse, p_delta, p_sums, o_m, o_x, NQ, NK, first,
                    last, windows, scale, s_db, s_qb, s_kb, H, S_DT, S_QT, S_KT, D, D0, D1, BM,
                    REST_ROWS, EVEN_Q, False)
    else:
        _dbias_tile(p_do, p_q, p_k, p_v, p_bias, p_mask, p_lse, p_delta, p_sums, o_m, o_n, NQ, NK, first,
                    last, windows, scale, s_db, s_qb, s_kb, H, S_DT, S_QT, S_KT, D, D0, D1, BM, BN,
                    EVEN_Q, EVEN_K)
# fmt: on


def dbias_options(
    queries: int, keys: int, head_dim: int, dtype_bytes: int, capability: int
) -> list[Tiles]:
    """Tiles of the dbias kernel, the usual ones first."""
    if dtype_bytes == 4 or min(queries, keys) <= 33 or head_dim > 128:
        return [Tiles(32, 32, 4, 2)]
    usual = Tiles(64, 32, 4, 2)  # larger ones spill on some GPUs
    found = [usual, usual._replace(stages=3), Tiles(64, 64, 8, 2), Tiles(64, 64, 4, 2)]
    return [Tiles(32, 32, 4, 2), *found] if head_dim > 64 and capability >= 100 else found


def _grid(queries: int, keys: int, heads: int, images: int, tiles: Tiles) -> tuple[int, int, int]:
    """Tiles of queries and of keys, and parts of the images."""
    own = split_rows(queries, tiles.block_m, queries == keys)
    rows, columns = own.tiles + (own.rest > 0), 1 + split_rows(keys, tiles.block_n, True).tiles
    return rows, columns, min(images, cdiv(PROGRAMS, heads * rows * columns))


def launch_dbias(dout, q, k, v, bias, mask, lse, delta, scale, dbias, tiles: Tiles) -> None:
    """Fills dbias from the delta of `launch_dq`; k and v have equal strides."""
    batch, queries, heads, head_dim = q.shape
    keys = k.shape[1]
    rows, columns, parts = _grid(queries, keys, heads, batch, tiles)
    sums = dbias if parts == 1 else dbias.new_empty((parts, *dbias.shape))
    constants = tile_constants(queries, keys, head_dim, queries == keys, tiles)
    attention_dbias_kernel[(rows * columns * heads * parts,)](
        dout, q, k, v, bias, mask, lse, delta, sums, scale, queries, keys, batch, parts,
        1 if mask is None else len(mask), rows, columns, dout.stride(0), q.stride(0), k.stride(0),
        **backward_strides(dout, q, k), **constants,
    )  # fmt: skip
    if parts > 1:
        sum_into([dbias.view(-1)], sums.view(parts, 1, -1))


def aot_cases(shape: AotShape) -> list[AotCase]:
    """The whole sequence, and masked windows."""
    found = []
    for call in biased_calls(shape):
        sizes = call.queries, call.keys, call.head_dim
        tiles = dbias_options(*sizes, DTYPE_BYTES[shape.dtype], shape.capability)[0]
        rows, columns, parts = _grid(call.queries, call.keys, call.heads, shape.batch, tiles)
        strides, (bias_args, no_bias) = aot_strides(call), aot_bias(call)
        del strides["S_OT"], strides["S_OH"]
        constants = {"H": call.heads, **strides, "S_DT": call.width, "S_DH": call.head_dim}
        constants |= no_bias | tile_constants(*sizes, call.first_query, tiles)
        warps, stages = constants.pop("num_warps"), constants.pop("num_stages")
        pointer = f"*{shape.dtype}"
        args = {
            **dict.fromkeys(("p_do", "p_q", "p_k", "p_v"), pointer),
            **dict.fromkeys(("p_lse", "p_delta", "p_sums"), "*fp32"),
            "scale": call.head_dim**-0.5, "NQ": call.queries, "NK": call.keys,
            "images": shape.batch, "parts": parts, "tiles_m": rows, "tiles_n": columns,
            "s_db": call.queries * call.width, "s_qb": call.queries * strides["S_QT"],
            "s_kb": call.keys * strides["S_KT"], **bias_args,
        }  # fmt: skip
        found.append(
            AotCase(
                attention_dbias_kernel, args, constants, warps, stages, shape.tensor_cores,
                call.label, True,
            )
        )  # fmt: skip
    return found
