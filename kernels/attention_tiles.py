"""Tiles of attention: what the kernels of both directions share.

A sequence is exact tiles and a rest: row 0 (CLS) and up to 15 rows that are left over share a tile of
16 rows, the fewest that the tensor cores take. Where more are left over the last tile is masked. A
head of d columns is two tiles side by side: a power of two, and the rest rounded up to one.
"""

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import next_power_of_2
from eva_fast.kernels.quantise_fp8 import as_stored, magnitude_bits
from eva_fast.kernels.tiles import Tiles
from eva_fast.ops.quantise_fp8 import padded
from eva_fast.ops.registry import Case

REST_ROWS = tl.constexpr(16)  # of the tile that holds what exact tiles leave over
LOG2E = tl.constexpr(1.4426950408889634)


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
def store_sums(p_sums, x_0, x_1, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """Writes the column sums of two fp32 tiles [rows, D0] and [rows, D1]."""
    o_1 = D0 + tl.arange(0, D1)
    tl.store(p_sums + tl.arange(0, D0), tl.sum(x_0, 0))
    tl.store(p_sums + o_1, tl.sum(x_1, 0), mask=o_1 < D)


@triton.jit
def store_columns(p_columns, inverse, x_0, x_1, o_t, limit, PADDED, D: tl.constexpr, D0: tl.constexpr,
                  D1: tl.constexpr):
    """Writes two tiles, times `inverse`, transposed: rows of one head are columns o_t."""
    o_0 = tl.arange(0, D0)[:, None]
    o_1 = D0 + tl.arange(0, D1)[:, None]
    m_t = o_t[None, :] < limit
    element = p_columns.dtype.element_ty
    x_0 = tl.trans((x_0.to(tl.float32) * inverse).to(element))
    x_1 = tl.trans((x_1.to(tl.float32) * inverse).to(element))
    tl.store(p_columns + o_0.to(tl.int64) * PADDED + o_t[None, :], x_0, mask=m_t)
    tl.store(p_columns + o_1.to(tl.int64) * PADDED + o_t[None, :], x_1, mask=m_t & (o_1 < D))


@triton.jit
def largest_of(x_0, x_1, element: tl.constexpr):
    """The largest magnitude in two fp32 tiles, as stored in `element`."""
    most = tl.maximum(tl.max(magnitude_bits(x_0)), tl.max(magnitude_bits(x_1)))
    return as_stored(most, element)


@triton.jit
def dot_heads(a_0, a_1, b_0, b_1):
    """a b^T over a head in two parts, fp32: [rows of a, rows of b]."""
    product = tl.dot(a_0, tl.trans(b_0), input_precision="ieee")
    return tl.dot(a_1, tl.trans(b_1), product, input_precision="ieee")


@triton.jit
def add_bias(b_s, p_bias, p_mask, o_s, m_s, EVEN: tl.constexpr):
    """Scores with the bias and, if there is one, the mask: [queries, keys] at o_s, where m_s."""
    if EVEN:
        b_s += tl.load(p_bias + o_s)
    else:
        b_s += tl.load(p_bias + o_s, mask=m_s, other=0.0)
    if p_mask is not None:
        if EVEN:
            b_s += tl.load(p_mask + o_s)
        else:
            b_s += tl.load(p_mask + o_s, mask=m_s, other=0.0)
    return b_s


@triton.jit
def softmax_again(b_s, b_lse, p_bias, p_mask, o_s, m_s, scale, EVEN: tl.constexpr):
    """Probabilities from products b_s = q k^T and saved lse. With a bias the difference is taken before
    it is scaled to powers of two: larger scores would round more."""
    if p_bias is None:
        return tl.exp2(b_s * (scale * LOG2E) - b_lse * LOG2E)
    else:
        return tl.exp(add_bias(b_s * scale, p_bias, p_mask, o_s, m_s, EVEN) - b_lse)


@triton.jit
def rest_rows(T, FIRST: tl.constexpr, REST: tl.constexpr):
    """The REST rows that are in no exact tile, in a tile of REST_ROWS: row 0 if FIRST, and the last
    ones; the others lie past the end."""
    o_r = tl.arange(0, REST_ROWS)
    return tl.where(o_r < REST, tl.where(o_r < FIRST, 0, T - REST + o_r), T)
# fmt: on


def split_head(head_dim: int) -> tuple[int, int]:
    """Widths of the two tiles of a head: a power of two below head_dim, and the rest rounded up."""
    first = max(16, next_power_of_2(head_dim) // 2)
    return first, max(16, next_power_of_2(max(head_dim - first, 1)))


class Split(NamedTuple):
    """The rows of one head as tiles."""

    tiles: int
    rest: int
    """Rows in the tile beside that of program 0."""
    even: bool
    """Whether all tiles are full."""


def split_rows(rows: int, block: int, first: bool) -> Split:
    """first: row 0 is in no tile of `block` rows."""
    full, left = divmod(rows - first, block)
    if full and left + first < REST_ROWS.value:
        return Split(full, left + first, True)
    return Split(max(full + (left > 0), 1), int(first), left == 0 and full > 0)


@functools.cache
def tile_constants(
    queries: int, keys: int, head_dim: int, first_query: bool, tiles: Tiles
) -> dict[str, Any]:
    """What all three kernels want to know of their tiles, and how they are launched; not to be
    changed."""
    first, rest = split_head(head_dim)
    own = split_rows(queries, tiles.block_m, first_query)
    other = split_rows(keys, tiles.block_n, True)
    return {
        "D": head_dim, "D0": first, "D1": rest, "BM": tiles.block_m, "BN": tiles.block_n,
        "FIRST_QUERY": first_query, "REST_Q": own.rest, "REST_K": other.rest,
        "EVEN_Q": own.even, "EVEN_K": other.even,
        "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip


def query_programs(queries: int, first_query: bool, tiles: Tiles) -> int:
    """Programs that share the queries of one head."""
    split = split_rows(queries, tiles.block_m, first_query)
    return split.tiles + (split.rest > 0 and not tiles.beside)


def same_strides(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """k and v as the kernels take them: equal strides, the last one 1; copied where they are not."""
    if k.stride() != v.stride() or k.stride(-1) != 1:
        return k.contiguous(), v.contiguous()
    return k, v


class Bias(NamedTuple):
    """What is added to the scores of a call."""

    scores: torch.Tensor | None = None
    """float32 [H, Tq, T]."""
    mask: torch.Tensor | None = None
    """float32 [W, Tq, T], for windows; only beside a bias."""

    @property
    def windows(self) -> int:
        return 1 if self.mask is None else len(self.mask)


NO_BIAS = Bias()


class Eight(NamedTuple):
    """What is written in 8 bits beside the 16, for the products behind attention."""

    scale: torch.Tensor | None = None
    """Float32 []: of out."""
    out: torch.Tensor | None = None
    """[B, Tq, H, d], contiguous: out / scale, of the forward."""
    columns: torch.Tensor | None = None
    """[H d, B Tq padded]: the transpose of out / scale, of the backward; it leaves the largest
    magnitudes of the gradients too."""


IN_16_BITS = Eight()


def limits(case: Case) -> str | None:
    """What the kernels do not take, see `eva_fast.ops.registry.Implementation`."""
    width = case.sizes[-1:]
    # below 16, the least that a product takes, a tile would reach beyond its head
    return None if not width or 16 <= width[0] <= 256 else "takes heads of 16 to 256 values"


def sizes_of(q: torch.Tensor, k: torch.Tensor) -> tuple:
    """What a choice of tiles depends on, (queries, keys, heads, head_dim, dtype); the batch only
    repeats it."""
    _, queries, heads, head_dim = q.shape
    return queries, k.shape[1], heads, head_dim, q.dtype


class AotCall(NamedTuple):
    """An attention call that is compiled for GPUs that are not here."""

    label: str
    queries: int
    keys: int
    heads: int
    head_dim: int
    biased: bool = False
    windows: int = 1
    """Of the mask; 1: there is none."""

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def first_query(self) -> bool:
        """As the launchers decide whether row 0 of the queries is apart."""
        return self.queries == self.keys


def packed_calls(shape: AotShape) -> list[AotCall]:
    """The whole sequence, and the last block's masked queries."""
    tokens, heads = shape.tokens, (shape.heads, shape.head_dim)
    return [
        AotCall("", tokens, tokens, *heads),
        AotCall("masked queries", shape.masked, tokens, *heads),
    ]


def biased_calls(shape: AotShape) -> list[AotCall]:
    """The whole sequence with a bias, and shifted windows as large as the grid; heads are of 64 and 32
    values in all published models of the kind."""
    tokens, patches = shape.tokens, shape.tokens - 1
    return [
        AotCall("bias", tokens, tokens, shape.width // 64, 64, True),
        AotCall("windows", patches, patches, shape.width // 32, 32, True, 4),
    ]


def aot_strides(call: AotCall) -> dict[str, int]:
    """Strides of packed qkv, or of queries apart from packed kv."""
    parts = 3 if call.first_query else 2
    return {
        "S_QT": call.width * (3 if call.first_query else 1), "S_QH": call.head_dim,
        "S_KT": parts * call.width, "S_KH": call.head_dim, "S_OT": call.width, "S_OH": call.head_dim,
    }  # fmt: skip


def aot_bias(call: AotCall) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments and constants of a call's bias and mask."""
    present = {"p_bias": call.biased, "p_mask": call.windows > 1}
    args: dict[str, Any] = {name: "*fp32" for name, there in present.items() if there}
    return args | {"windows": call.windows}, {n: None for n, there in present.items() if not there}


def backward_strides(dout, q, k) -> dict[str, int]:
    """What both kernels of the backward know of strides."""
    return {
        "H": q.shape[2], "S_DT": dout.stride(1), "S_DH": dout.stride(2), "S_QT": q.stride(1),
        "S_QH": q.stride(2), "S_KT": k.stride(1), "S_KH": k.stride(2),
    }  # fmt: skip


def backward_aot_case(
    kernel: Any, shape: AotShape, call: AotCall, tiles: Tiles, programs: int, own_keys: bool,
    eight: bool = False,
) -> AotCase:  # fmt: skip
    """A case of the dq kernel or, with own_keys, of that of dk and dv; eight: beside 8-bit products."""
    pointer = f"*{shape.dtype}"
    strides = aot_strides(call)
    config = dict(tile_constants(call.queries, call.keys, call.head_dim, call.first_query, tiles))
    warps, stages = config.pop("num_warps"), config.pop("num_stages")
    names = ("p_do", "p_q", "p_k", "p_v", "p_out", "p_dq", "p_dk", "p_dv")
    gradient = strides["S_KT" if own_keys else "S_QT"]
    bias_args, no_bias = aot_bias(call)
    args = {
        **dict.fromkeys(names, pointer), "p_lse": "*fp32", "p_delta": "*fp32", "p_sums": "*fp32",
        "scale": call.head_dim**-0.5, "NQ": call.queries, "NK": call.keys, "tiles": programs,
        "s_db": call.queries * call.width, "s_qb": call.queries * strides["S_QT"],
        "s_kb": call.keys * strides["S_KT"], "s_ob": call.queries * call.width,
        "s_gb": (call.keys if own_keys else call.queries) * gradient, **bias_args,
    }  # fmt: skip
    constants = {
        "H": call.heads, **strides, "S_DT": call.width, "S_DH": call.head_dim, **config,
        "S_GT": gradient, "S_GH": call.head_dim, **no_bias,
    }  # fmt: skip
    pointers = {"p_largest": "*fp32"}
    if not own_keys:
        constants["BESIDE"] = tiles.beside
        pointers |= {"p_columns": "*fp8e4nv", "p_columns_scale": "*fp32"}
        args["PADDED"] = padded(shape.batch * call.queries) if eight else 1
    for name, pointer in pointers.items():
        (args if eight else constants)[name] = pointer if eight else None
    return AotCase(
        kernel, args, constants, warps, stages, shape.tensor_cores, call.label, small_tiles=True
    )
