"""The bias of attention scores from a table of relative positions (Swin, BEiT).

    bias[h, i, j] = table[index[i, j], h],    dtable[n, h] = sum of dbias[h, i, j] over index[i, j] = n

index says which of the table's N rows a pair of tokens takes, the same for every image and step. So
the pairs are sorted by row once (`sort_pairs`), and the gradient of a row is the sum of one segment
of them: no atomics, the same bits every time.
"""

import torch
from torch import Tensor

from eva_fast.ops.checks import check
from eva_fast.ops.choose import chosen
from eva_fast.ops.registry import define

__all__ = ["relative_bias", "sort_pairs"]
_NAME = "relative_bias"
_INTEGERS = (torch.int64,)


def sort_pairs(index: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """(order, starts) of index [Tq, T], int64, values below `rows`: the pairs of row n of the table
    are order[starts[n] : starts[n + 1]], int64 [Tq T] and [rows + 1]. ValueError for other values.
    """
    flat = index.flatten()
    if flat.numel() and not (flat.min() >= 0 and flat.max() < rows):
        raise ValueError(
            f"{_NAME}: index must be in 0..{rows - 1}, got {int(flat.min())} to {int(flat.max())}"
        )
    counts = torch.bincount(flat, minlength=rows)
    return flat.argsort(stable=True), torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def reference(table: Tensor, index: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    """`relative_bias` in plain, differentiable PyTorch."""
    return table[index].permute(2, 0, 1).contiguous()


def _forward_torch(table, index):
    by_head = table.t().contiguous()
    return by_head.index_select(1, index.flatten()).view(-1, *index.shape)


def _backward_torch(dbias, index, order, starts):
    by_pair = dbias.flatten(1).t()
    rows = starts.shape[0] - 1
    if dbias.device.type == "cpu":  # adds pair by pair, in order
        return dbias.new_zeros((rows, len(dbias))).index_add_(0, index.flatten(), by_pair)
    return torch.segment_reduce(by_pair[order], "sum", offsets=starts, axis=0, unsafe=True)


def _forward(table: Tensor, index: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    return chosen(OP, table)(table, index)


_forward_op = torch.library.custom_op(f"eva_fast::{_NAME}", mutates_args=())(_forward)


@_forward_op.register_fake
def _(table, index, order, starts):
    return table.new_empty((table.shape[1], *index.shape))


def _backward(dbias: Tensor, index: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    return chosen(BACKWARD, dbias)(dbias.contiguous(), index, order, starts)


_backward_op = torch.library.custom_op(f"eva_fast::{_NAME}_backward", mutates_args=())(_backward)


@_backward_op.register_fake
def _(dbias, index, order, starts):
    return dbias.new_empty((starts.shape[0] - 1, dbias.shape[0]))


def relative_bias(table: Tensor, index: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    """bias [H, Tq, T] of the table's dtype.

    table: [N, H], last stride 1; index: int64 [Tq, T], values below N; order, starts: what
    `sort_pairs(index, N)` gives. Raises ValueError naming what does not fit.
    """
    check(_NAME, "table", table, shape=(None, None))
    check(_NAME, "index", index, shape=(None, None), dtypes=_INTEGERS, like=table)
    check(_NAME, "order", order, shape=(index.numel(),), dtypes=_INTEGERS, like=table)
    check(_NAME, "starts", starts, shape=(len(table) + 1,), dtypes=_INTEGERS, like=table)
    return _forward_op(table, index, order, starts)


OP = define(_NAME, part="attention", reference=reference, plain=_forward_torch, kernels=2)
BACKWARD = define(
    f"{_NAME}_backward", part="attention", plain=_backward_torch, kernels=3, backward_of=OP
)
relative_bias.reference = reference  # type: ignore[attr-defined]


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:])


def _autograd(ctx, dbias):
    return _backward_op(dbias, *ctx.saved_tensors), None, None, None


_forward_op.register_autograd(_autograd, setup_context=_setup_context)
