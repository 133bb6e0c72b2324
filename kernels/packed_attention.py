"""Attention for sequences of 1 + n tokens with awkward head sizes, forward.

    s = scale * q k^T,  lse_i = log sum_j exp(s_ij),  out_i = sum_j exp(s_ij - lse_i) v_j

as in FlashAttention-2 (Dao 2023): one program owns a tile of queries and walks over the keys with a
running maximum and sum, so the scores never reach memory.

A ViT's sequence is CLS and n patches, n often a multiple of 64 (257 = 1 + 256). Usual kernels pad it
to the next tile (384 = 3 x 128) and a head of 88 to 128 columns: 2.2 times the work. Here
- row 0 of queries and of keys is a tile of its own, of the smallest size that the tensor cores take
  (16 rows, 1 used), and the n patches are exact tiles; any n is right, with a masked last tile,
- a head of d columns is a power of two and a rest (88 = 64 + 24, the rest in a tile of 32).

Tensors are [B, T, H, d] with any strides but the last, out too; lse is fp32 [B, H, T]. Products take
the input's dtype with fp32 sums; fp32 inputs use full fp32 products ("ieee"), never TF32. The strides
of tokens and heads are constants: a head stride of 88 elements is no multiple of 16, so as run-time
values they would cost every 128-bit access.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import cdiv, kernel, next_power_of_2, triton_op
from eva_fast.ops.registry import Case

FIRST = tl.constexpr(16)  # rows of the tile that holds row 0 alone
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


# fmt: off
@triton.jit
def load_tile(p_x, o_t, limit, S_T: tl.constexpr, D: tl.constexpr, D0: tl.constexpr,
              D1: tl.constexpr, EVEN: tl.constexpr):
    """Rows o_t of one head as two tiles [rows, D0] and [rows, D1]; zero past `limit` and past D."""
    o_0 = tl.arange(0, D0)
    o_1 = D0 + tl.arange(0, D1)
    p_rows = p_x + o_t[:, None] * S_T
    if EVEN:
        x_0 = tl.load(p_rows + o_0[None, :])
        x_1 = tl.load(p_rows + o_1[None, :], mask=o_1[None, :] < D, other=0.0)
    else:
        m_t = o_t[:, None] < limit
        x_0 = tl.load(p_rows + o_0[None, :], mask=m_t, other=0.0)
        x_1 = tl.load(p_rows + o_1[None, :], mask=m_t & (o_1[None, :] < D), other=0.0)
    return x_0, x_1


@triton.jit
def store_tile(p_x, x_0, x_1, o_t, limit, S_T: tl.constexpr, D: tl.constexpr, D0: tl.constexpr,
               D1: tl.constexpr, EVEN: tl.constexpr):
    """Writes two tiles as `load_tile` reads them, in the pointer's element type."""
    o_0 = tl.arange(0, D0)
    o_1 = D0 + tl.arange(0, D1)
    p_rows = p_x + o_t[:, None] * S_T
    element = p_x.dtype.element_ty
    if EVEN:
        tl.store(p_rows + o_0[None, :], x_0.to(element))
        tl.store(p_rows + o_1[None, :], x_1.to(element), mask=o_1[None, :] < D)
    else:
        m_t = o_t[:, None] < limit
        tl.store(p_rows + o_0[None, :], x_0.to(element), mask=m_t)
        tl.store(p_rows + o_1[None, :], x_1.to(element), mask=m_t & (o_1[None, :] < D))


@triton.jit
def dot_heads(a_0, a_1, b_0, b_1):
    """a b^T over a head in two parts, fp32: [rows of a, rows of b]."""
    product = tl.dot(a_0, tl.trans(b_0), input_precision="ieee")
    return tl.dot(a_1, tl.trans(b_1), product, input_precision="ieee")


@triton.jit
def _forward_step(q_0, q_1, acc_0, acc_1, b_max, b_sum, p_k, p_v, o_n, limit, scale_log2,
                  S_KT: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
                  EVEN: tl.constexpr):
    """Adds one tile of keys to the running softmax of a tile of queries."""
    k_0, k_1 = load_tile(p_k, o_n, limit, S_KT, D, D0, D1, EVEN)
    b_s = dot_heads(q_0, q_1, k_0, k_1) * scale_log2  # [BM, BN], in units of log2
    if not EVEN:
        b_s = tl.where(o_n[None, :] < limit, b_s, float("-inf"))
    new_max = tl.maximum(b_max, tl.max(b_s, 1))
    b_p = tl.exp2(b_s - new_max[:, None])
    b_shrink = tl.exp2(b_max - new_max)
    v_0, v_1 = load_tile(p_v, o_n, limit, S_KT, D, D0, D1, EVEN)
    b_p16 = b_p.to(v_0.dtype)
    acc_0 = tl.dot(b_p16, v_0, acc_0 * b_shrink[:, None], input_precision="ieee")
    acc_1 = tl.dot(b_p16, v_1, acc_1 * b_shrink[:, None], input_precision="ieee")
    return acc_0, acc_1, new_max, b_sum * b_shrink + tl.sum(b_p, 1)


@triton.jit
def _forward_tile(p_q, p_k, p_v, p_out, p_lse, start, limit, NK, scale_log2,
                  S_QT: tl.constexpr, S_KT: tl.constexpr, S_OT: tl.constexpr, D: tl.constexpr,
                  D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                  EVEN_Q: tl.constexpr, EVEN_K: tl.constexpr):
    """Queries start .. start + BM of one head against all keys."""
    o_m = start + tl.arange(0, BM)
    q_0, q_1 = load_tile(p_q, o_m, limit, S_QT, D, D0, D1, EVEN_Q)
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    acc_0 = tl.zeros([BM, D0], tl.float32)
    acc_1 = tl.zeros([BM, D1], tl.float32)
    acc_0, acc_1, b_max, b_sum = _forward_step(
        q_0, q_1, acc_0, acc_1, b_max, b_sum, p_k, p_v, tl.arange(0, FIRST), 1, scale_log2,
        S_KT, D, D0, D1, False)
    for start_n in range(1, NK, BN):
        acc_0, acc_1, b_max, b_sum = _forward_step(
            q_0, q_1, acc_0, acc_1, b_max, b_sum, p_k, p_v, start_n + tl.arange(0, BN), NK,
            scale_log2, S_KT, D, D0, D1, EVEN_K)
    store_tile(p_out, acc_0 / b_sum[:, None], acc_1 / b_sum[:, None], o_m, limit, S_OT, D, D0, D1,
               EVEN_Q)
    tl.store(p_lse + o_m, (b_max + tl.log2(b_sum)) * LN2, mask=o_m < limit)


@kernel
@triton.jit
def attention_forward_kernel(
    p_q, p_k, p_v, p_out, p_lse, scale, NQ, NK, tiles, s_qb, s_kb, s_ob,
    H: tl.constexpr, S_QT: tl.constexpr, S_QH: tl.constexpr, S_KT: tl.constexpr,
    S_KH: tl.constexpr, S_OT: tl.constexpr, S_OH: tl.constexpr, D: tl.constexpr, D0: tl.constexpr,
    D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, FIRST_QUERY: tl.constexpr,
    EVEN_Q: tl.constexpr, EVEN_K: tl.constexpr,
):
    """One program: a tile of queries of one head; with FIRST_QUERY, program 0 of a head has row 0."""
    pid = tl.program_id(0)
    head = (pid // tiles).to(tl.int64)
    tile = pid % tiles
    batch = head // H
    p_q += batch * s_qb + head % H * S_QH
    p_k += batch * s_kb + head % H * S_KH
    p_v += batch * s_kb + head % H * S_KH
    p_out += batch * s_ob + head % H * S_OH
    p_lse += head * NQ
    scale_log2 = scale * LOG2E
    if FIRST_QUERY:
        if tile == 0:
            _forward_tile(p_q, p_k, p_v, p_out, p_lse, 0, 1, NK, scale_log2, S_QT, S_KT, S_OT, D, D0,
                          D1, FIRST, BN, False, EVEN_K)
        else:
            _forward_tile(p_q, p_k, p_v, p_out, p_lse, 1 + (tile - 1) * BM, NQ, NK, scale_log2, S_QT,
                          S_KT, S_OT, D, D0, D1, BM, BN, EVEN_Q, EVEN_K)
    else:
        _forward_tile(p_q, p_k, p_v, p_out, p_lse, tile * BM, NQ, NK, scale_log2, S_QT, S_KT, S_OT,
                      D, D0, D1, BM, BN, EVEN_Q, EVEN_K)
# fmt: on


def split_head(head_dim: int) -> tuple[int, int]:
    """Widths of the two tiles of a head: a power of two below head_dim, and the rest rounded up."""
    first = max(16, next_power_of_2(head_dim) // 2)
    return first, max(16, next_power_of_2(max(head_dim - first, 1)))


def forward_config(queries: int, keys: int, head_dim: int, first_query: bool) -> dict[str, Any]:
    """Tile sizes and launch options of the forward kernel: constants, num_warps, num_stages."""
    block_m = 64 if queries - first_query > 32 else 32
    block_n = 64 if keys > 33 and head_dim <= 128 else 32
    first, rest = split_head(head_dim)
    return {
        "D": head_dim, "D0": first, "D1": rest, "BM": block_m, "BN": block_n,
        "FIRST_QUERY": first_query,
        "EVEN_Q": (queries - first_query) % block_m == 0,
        "EVEN_K": (keys - 1) % block_n == 0,
        "num_warps": 4,
        "num_stages": 2,
    }  # fmt: skip


def tiles_a_head(rows: int, block: int, first: bool) -> int:
    """Programs that cover the rows of one head."""
    return first + cdiv(rows - first, block)


def same_strides(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """k and v as the kernels take them: equal strides, the last one 1; copied where they are not."""
    if k.stride() != v.stride() or k.stride(-1) != 1:
        return k.contiguous(), v.contiguous()
    return k, v


def limits(case: Case) -> str | None:
    """What the kernels do not take, see `eva_fast.ops.registry.Implementation`."""
    return None if case.sizes[-1:] <= (256,) else "takes heads of up to 256 values"


@triton_op("packed_attention", limits=limits)
def forward(q, k, v, scale):
    """Row 0 of the queries gets a tile of its own where there are as many queries as keys."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    batch, queries, heads, head_dim = q.shape
    lse = torch.empty((batch, heads, queries), dtype=torch.float32, device=q.device)
    k, v = same_strides(k, v)
    keys = k.shape[1]
    config = forward_config(queries, keys, head_dim, queries == keys)
    tiles = tiles_a_head(queries, config["BM"], config["FIRST_QUERY"])
    attention_forward_kernel[(batch * heads * tiles,)](
        q, k, v, out, lse, scale, queries, keys, tiles, q.stride(0), k.stride(0), out.stride(0),
        H=heads, S_QT=q.stride(1), S_QH=q.stride(2), S_KT=k.stride(1), S_KH=k.stride(2),
        S_OT=out.stride(1), S_OH=out.stride(2), **config,
    )  # fmt: skip
    return out, lse


def aot_strides(shape: AotShape, masked: bool) -> dict[str, int]:
    """Strides of the student's attention: packed qkv, or masked queries beside packed kv."""
    width, head_dim = shape.width, shape.head_dim
    packed = (2 if masked else 3) * width
    queries = width if masked else packed
    return {"S_QT": queries, "S_QH": head_dim, "S_KT": packed, "S_KH": head_dim, "S_OT": width,
            "S_OH": head_dim}  # fmt: skip


def aot_cases(shape: AotShape) -> list[AotCase]:
    """The whole sequence, and the last block's masked queries."""
    found = []
    for masked in (False, True):
        queries = shape.masked if masked else shape.tokens
        config = forward_config(queries, shape.tokens, shape.head_dim, not masked)
        warps, stages = config.pop("num_warps"), config.pop("num_stages")
        strides = aot_strides(shape, masked)
        pointer = f"*{shape.dtype}"
        args = {
            "p_q": pointer, "p_k": pointer, "p_v": pointer, "p_out": pointer, "p_lse": "*fp32",
            "scale": shape.head_dim**-0.5, "NQ": queries, "NK": shape.tokens,
            "tiles": tiles_a_head(queries, config["BM"], not masked),
            "s_qb": queries * strides["S_QT"], "s_kb": shape.tokens * strides["S_KT"],
            "s_ob": queries * strides["S_OT"],
        }  # fmt: skip
        constants = {"H": shape.heads, **strides, **config}
        label = "masked queries" if masked else ""
        found.append(
            AotCase(attention_forward_kernel, args, constants, warps, stages, True, label, True)
        )
    return found
