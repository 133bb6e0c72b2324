"""Rows of the masked patches, out of all tokens.

    out[b K + k] = x[b, 1 + mask[b, k]]        x [B, T, D] with the CLS token in row 0

Only masked patches reach EVA's loss (Fang et al. 2022, EVA, section 2.1), so the head works on
these M = B K rows. Where CLS is wanted too, its index is -1. The backward writes dx whole: the rows
of the mask, and zeros elsewhere.

An implementation gets x [B, T, D] with last stride 1 (any other strides), mask int32 [B, K]
contiguous, dout [B K, D] with last stride 1; and returns contiguous tensors.
"""

import torch
from torch import Tensor

from eva_fast.ops.checks import check, dense_last
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import direct
from eva_fast.ops.registry import define

__all__ = ["masked_gather", "masked_gather_backward", "masked_gather_forward"]
_NAME = "masked_gather"


def reference(x: Tensor, mask: Tensor) -> Tensor:
    """`masked_gather` in plain, differentiable PyTorch."""
    index = (mask.long() + 1)[:, :, None].expand(-1, -1, x.shape[-1])
    return x.gather(1, index).flatten(0, 1)


def _forward(x: Tensor, mask: Tensor) -> Tensor:
    return chosen(OP, x)(x, mask.contiguous())


_forward_op = torch.library.custom_op("eva_fast::masked_gather", mutates_args=())(_forward)


@_forward_op.register_fake
def _(x, mask):
    return x.new_empty((mask.shape[0] * mask.shape[1], x.shape[2]))


def _backward(dout: Tensor, mask: Tensor, tokens: int) -> Tensor:
    return chosen(BACKWARD, dout)(dout, mask.contiguous(), tokens)


_backward_op = torch.library.custom_op("eva_fast::masked_gather_backward", mutates_args=())(
    _backward
)


@_backward_op.register_fake
def _(dout, mask, tokens):
    return dout.new_empty((mask.shape[0], tokens, dout.shape[1]))


def masked_gather_forward(x: Tensor, mask: Tensor) -> Tensor:
    """`masked_gather` without the checks, for functions that bring their own backward."""
    return (_forward if direct(x) else _forward_op)(x, mask)


def masked_gather_backward(dout: Tensor, mask: Tensor, tokens: int) -> Tensor:
    """dx [B, T, D] from dout [B K, D]: zero in every row the mask does not name."""
    return (_backward if direct(dout) else _backward_op)(dense_last(dout), mask, tokens)


def masked_gather(x: Tensor, mask: Tensor) -> Tensor:
    """Rows 1 + mask of x, row-major over (image, masked patch).

    x: [B, T, D] float32, bfloat16 or float16, last stride 1. mask: int32 [B, K], each row
    ascending in [-1, T - 1), no index twice (on a GPU the values are not read, so not checked).
    Returns [B K, D]. Raises ValueError naming what does not fit.
    """
    check(_NAME, "x", x, shape=(None, None, None))
    check(_NAME, "mask", mask, shape=(x.shape[0], None), dtypes=(torch.int32,), like=x)
    return _forward_op(x, mask)


def token_rows(mask: Tensor, tokens: int) -> Tensor:
    """int64 [B K]: the rows 1 + mask of [B, T, D] as rows of [B T, D]."""
    cls_rows = tokens * torch.arange(mask.shape[0], device=mask.device)
    return (1 + mask + cls_rows[:, None]).flatten()


def _forward_torch(x, mask):
    return x.flatten(0, 1).index_select(0, token_rows(mask, x.shape[1]))


def _backward_torch(dout, mask, tokens):
    dx = dout.new_zeros((mask.shape[0], tokens, dout.shape[1]))
    dx.flatten(0, 1).index_add_(0, token_rows(mask, tokens), dout)
    return dx


OP = define(_NAME, part="elementwise", reference=reference, plain=_forward_torch)
masked_gather.reference = reference  # type: ignore[attr-defined]
BACKWARD = define(f"{_NAME}_backward", part="elementwise", plain=_backward_torch, backward_of=OP)


def _setup_context(ctx, inputs, output):
    x, mask = inputs
    ctx.save_for_backward(mask)
    ctx.tokens = x.shape[1]


def _autograd(ctx, dout):
    return masked_gather_backward(dout, ctx.saved_tensors[0], ctx.tokens), None


_forward_op.register_autograd(_autograd, setup_context=_setup_context)
