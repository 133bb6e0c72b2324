"""What the attention ops share: their operands side by side, sizes, sums and FLOPs."""

import torch
from torch import Tensor
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

from eva_fast.ops.checks import check, statistics_dtype


def check_operands(op: str, q: Tensor | None, packed: Tensor) -> None:
    """packed: [B, T, 3, H, d], or [B, T, 2, H, d] with q [B, Tq, H, d] apart; ValueError else."""
    check(op, "packed", packed, shape=(None, None, 3 if q is None else 2, None, None))
    if q is not None:
        batch, _, _, heads, dim = packed.shape
        check(op, "q", q, shape=(batch, None, heads, dim), dtypes=(packed.dtype,), like=packed)


def split(q: Tensor | None, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v, or their gradients, as views [B, Tq or T, H, d]."""
    parts = packed.unbind(2)
    return parts if q is None else (q, *parts)  # type: ignore[return-value]


def sizes_of(q: Tensor, k: Tensor) -> tuple[int, ...]:
    """(batch, queries, keys, heads, head_dim), as `AttentionShape` names them."""
    batch, queries, heads, dim = q.shape
    return batch, queries, k.shape[1], heads, dim


def empty_outputs(q: Tensor | None, packed: Tensor) -> tuple[Tensor, Tensor]:
    """out [B, Tq, H, d] and lse [B, H, Tq], not filled."""
    batch, tokens, heads, dim = packed.select(2, 0).shape if q is None else q.shape
    out = packed.new_empty((batch, tokens, heads, dim))
    return out, packed.new_empty((batch, heads, tokens), dtype=statistics_dtype(packed))


def column_sums(dq: Tensor | None, dpacked: Tensor, dtype: torch.dtype) -> Tensor:
    """Of dq and dv over all tokens, [2, H d]; dpacked is contiguous."""
    batch, tokens, parts, heads, dim = dpacked.shape
    width = heads * dim
    if parts == 3:  # every other part, by one view
        ends = dpacked.as_strided((batch * tokens, 2, width), (3 * width, 2 * width, 1))
        return ends.sum(0, dtype=dtype)
    assert dq is not None
    rows = dpacked.view(-1, parts, width)
    return torch.stack([t.sum(0, dtype=dtype) for t in (dq.view(-1, width), rows[:, 1])])


def forward_flops(q, packed, *_, **__) -> int:
    """Of (q, packed, ...): both products."""
    q_shape, kv = _head_shapes(q, packed)
    return sdpa_flop_count(q_shape, kv, kv)


def backward_flops(dout, q, packed, *_, **__) -> int:
    """Of (dout, q, packed, ...): five products."""
    q_shape, kv = _head_shapes(q, packed)
    return sdpa_backward_flop_count(q_shape, q_shape, kv, kv)


def _head_shapes(q, packed):
    batch, tokens, _, heads, dim = packed.shape
    queries = tokens if q is None else q.shape[1]
    return (batch, heads, queries, dim), (batch, heads, tokens, dim)
