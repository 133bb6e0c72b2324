"""From the encoder's rows of the visible patches to a decoder's tokens of all, in one pass.

    out[b, 0]     = rows[b, 0] + pos[0]
    out[b, 1 + n] = pos[1 + n] + (rows[b, 1 + k]   where kept[b, k] = n
                                  mask_token       where no k has it)

(MAE, He et al. 2021: mask tokens are appended, the list is unshuffled, fixed positions are added: three
passes there.) The backward writes each row once and needs no atomics:

    drows[b, 0] = dout[b, 0],  drows[b, 1 + k] = dout[b, 1 + kept[b, k]]
    dmask_token = sum of dout over the patches that are not kept

An implementation gets rows [B, 1 + K, D] with last stride 1, kept int32 [B, K] contiguous, pos [T, D]
with last stride 1, dout [B, T, D] with last stride 1; and returns contiguous tensors.
"""

import torch
from torch import Tensor

from eva_fast.ops.checks import check, check_constant, dense_last, statistics_dtype
from eva_fast.ops.choose import chosen
from eva_fast.ops.masked_gather import token_rows
from eva_fast.ops.registry import define

__all__ = ["unshuffle_tokens", "unshuffle_tokens_backward"]
_NAME = "unshuffle_tokens"


def reference(rows: Tensor, kept: Tensor, mask_token: Tensor, pos_embed: Tensor) -> Tensor:
    """`unshuffle_tokens` in plain, differentiable PyTorch; 16-bit inputs compute in float32."""
    compute = statistics_dtype(rows)
    batch, _, width = rows.shape
    patches = pos_embed.shape[0] - 1
    index = kept.long()[:, :, None].expand(-1, -1, width)
    tokens = mask_token.to(compute).expand(batch, patches, width)
    tokens = tokens.scatter(1, index, rows[:, 1:].to(compute))
    out = torch.cat((rows[:, :1].to(compute), tokens), 1) + pos_embed.to(compute)
    return out.to(rows.dtype)


@torch.library.custom_op("eva_fast::unshuffle_tokens", mutates_args=())
def _forward_op(rows: Tensor, kept: Tensor, mask_token: Tensor, pos_embed: Tensor) -> Tensor:
    return chosen(OP, rows)(rows, kept.contiguous(), mask_token, pos_embed)


@_forward_op.register_fake
def _(rows, kept, mask_token, pos_embed):
    return rows.new_empty((rows.shape[0], *pos_embed.shape))


@torch.library.custom_op("eva_fast::unshuffle_tokens_backward", mutates_args=())
def _backward_op(dout: Tensor, kept: Tensor, parameter_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return chosen(BACKWARD, dout)(dout, kept.contiguous(), parameter_dtype)


@_backward_op.register_fake
def _(dout, kept, parameter_dtype):
    batch, _, width = dout.shape
    return (
        dout.new_empty((batch, kept.shape[1] + 1, width)),
        dout.new_empty((width,), dtype=parameter_dtype),
    )


def unshuffle_tokens_backward(
    dout: Tensor, kept: Tensor, parameter_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(drows [B, 1 + K, D], dmask_token [D]) from dout [B, T, D]; the sum accumulates in float32 and is
    returned in parameter_dtype."""
    return _backward_op(dense_last(dout), kept, parameter_dtype)


def unshuffle_tokens(rows: Tensor, kept: Tensor, mask_token: Tensor, pos_embed: Tensor) -> Tensor:
    """Tokens [B, T, D] of all patches, with mask tokens where nothing was kept, positions added.

    rows: [B, 1 + K, D] float32, bfloat16 or float16, CLS first, last stride 1. kept: int32 [B, K],
    which patch each row is, in [0, T - 1), no index twice in a row (on a GPU the values are not read, so
    not checked). mask_token: [D], float32 or of rows' dtype; gradients for rows and this. pos_embed:
    [T, D], a constant. Raises ValueError naming what does not fit.
    """
    check(_NAME, "rows", rows, shape=(None, None, None))
    batch, count, width = rows.shape
    check(_NAME, "kept", kept, shape=(batch, count - 1), dtypes=(torch.int32,), like=rows)
    dtypes = (statistics_dtype(rows), rows.dtype)
    check(_NAME, "mask_token", mask_token, shape=(width,), dtypes=dtypes, like=rows)
    check(_NAME, "pos_embed", pos_embed, shape=(None, width), dtypes=dtypes, like=rows)
    check_constant(_NAME, "pos_embed", pos_embed)
    return _forward_op(rows, kept, mask_token, pos_embed)


def _forward_torch(rows, kept, mask_token, pos_embed):
    compute = statistics_dtype(rows)
    batch, _, width = rows.shape
    tokens = pos_embed.shape[0]
    out = rows.new_empty((batch, tokens, width), dtype=compute)
    out[:] = mask_token
    out[:, 0] = rows[:, 0]
    where = token_rows(kept, tokens)
    out.flatten(0, 1)[where] = rows[:, 1:].reshape(-1, width).to(compute)
    out += pos_embed
    return out.to(rows.dtype)


def _backward_torch(dout, kept, parameter_dtype):
    batch, tokens, width = dout.shape
    where = token_rows(kept, tokens)
    drows = dout.new_empty((batch, kept.shape[1] + 1, width))
    drows[:, 0] = dout[:, 0]
    picked = dout.reshape(-1, width).index_select(0, where)
    drows[:, 1:] = picked.view(*kept.shape, width)
    dropped = torch.ones(batch * tokens, dtype=torch.bool, device=dout.device)
    dropped[::tokens] = False
    dropped[where] = False
    share = dropped.view(batch, tokens, 1).to(statistics_dtype(dout))
    # in two steps: short sums round little
    return drows, (dout * share).sum(1).sum(0).to(parameter_dtype)


OP = define(_NAME, part="elementwise", reference=reference, plain=_forward_torch)
unshuffle_tokens.reference = reference  # type: ignore[attr-defined]
BACKWARD = define(f"{_NAME}_backward", part="elementwise", plain=_backward_torch, backward_of=OP)


def _setup_context(ctx, inputs, output):
    _, kept, mask_token, _ = inputs
    ctx.save_for_backward(kept)
    ctx.parameter_dtype = mask_token.dtype


def _autograd(ctx, dout):
    drows, dmask_token = unshuffle_tokens_backward(dout, ctx.saved_tensors[0], ctx.parameter_dtype)
    return drows, None, dmask_token, None


_forward_op.register_autograd(_autograd, setup_context=_setup_context)
