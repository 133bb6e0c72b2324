"""From patch embeddings to the first block's tokens, in one pass.

    out[b, 0]     = cls + pos[0]
    out[b, 1 + n] = pos[1 + n] + (mask_token      where patch n of image b is masked
                                  patches[b, n] + c   elsewhere)

as EVA's student does (BEiT, Bao et al. 2021: masked embeddings are replaced by a learned token;
position embeddings are added to all). c is the patch embedding's bias: here, its gradient is a
column sum of rows that the backward reads anyway. The backward is one pass for five gradients:

    dpatches = dout of unmasked patches, 0 elsewhere      dmask_token = sum of dout, masked patches
    dpos = sum over images of dout                        dcls = dpos[0],  dc = sum of dpatches

An implementation gets patches [B, N, D] with last stride 1, mask int32 [B, K] contiguous or None,
dout [B, T, D] with last stride 1; and returns contiguous tensors.
"""

import torch
from torch import Tensor

from eva_fast.ops.checks import check, dense_last, nothing, statistics_dtype
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import differentiable, direct
from eva_fast.ops.masked_gather import token_rows
from eva_fast.ops.registry import define

__all__ = ["embed_tokens", "embed_tokens_backward", "embed_tokens_forward"]
_NAME = "embed_tokens"


def _masked(mask: Tensor, patches: int) -> Tensor:
    """bool [B, N] from indices int32 [B, K]."""
    flags = torch.zeros(mask.shape[0], patches, dtype=torch.bool, device=mask.device)
    return flags.scatter(1, mask.long(), True)


def reference(
    patches: Tensor,
    mask: Tensor | None,
    mask_token: Tensor,
    cls_token: Tensor,
    pos_embed: Tensor,
    patch_bias: Tensor | None = None,
) -> Tensor:
    """`embed_tokens` in plain, differentiable PyTorch; 16-bit inputs compute in float32."""
    compute = statistics_dtype(patches)
    tokens = patches.to(compute)
    if patch_bias is not None:
        tokens = tokens + patch_bias.to(compute)
    if mask is not None:
        flags = _masked(mask, patches.shape[1])[:, :, None]
        tokens = torch.where(flags, mask_token.to(compute), tokens)
    cls_row = cls_token.to(compute).expand(patches.shape[0], 1, -1)
    return (torch.cat((cls_row, tokens), 1) + pos_embed.to(compute)).to(patches.dtype)


def _forward(
    patches: Tensor,
    mask: Tensor | None,
    mask_token: Tensor,
    cls_token: Tensor,
    pos_embed: Tensor,
    patch_bias: Tensor | None,
) -> Tensor:
    mask = mask.contiguous() if mask is not None else None
    implementation = chosen(OP, patches)
    return implementation(patches, mask, mask_token, cls_token, pos_embed, patch_bias)


_forward_op = torch.library.custom_op("eva_fast::embed_tokens", mutates_args=())(_forward)


@_forward_op.register_fake
def _(patches, mask, mask_token, cls_token, pos_embed, patch_bias):
    batch, count, width = patches.shape
    return patches.new_empty((batch, count + 1, width))


def _backward(
    dout: Tensor, mask: Tensor | None, parameter_dtype: torch.dtype, want_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    mask = mask.contiguous() if mask is not None else None
    implementation = chosen(BACKWARD, dout)
    return implementation(dout, mask, parameter_dtype, want_bias)


_backward_op = torch.library.custom_op("eva_fast::embed_tokens_backward", mutates_args=())(
    _backward
)


@_backward_op.register_fake
def _(dout, mask, parameter_dtype, want_bias):
    batch, tokens, width = dout.shape
    row = dout.new_empty((width,), dtype=parameter_dtype)
    return (
        dout.new_empty((batch, tokens - 1, width)),
        row,
        torch.empty_like(row),
        dout.new_empty((tokens, width), dtype=parameter_dtype),
        torch.empty_like(row) if want_bias else nothing(row),
    )


def embed_tokens_forward(
    patches: Tensor,
    mask: Tensor | None,
    mask_token: Tensor,
    cls_token: Tensor,
    pos_embed: Tensor,
    patch_bias: Tensor | None = None,
) -> Tensor:
    """`embed_tokens` without the checks, for functions that bring their own backward."""
    run = _forward if direct(patches) else _forward_op
    return run(patches, mask, mask_token, cls_token, pos_embed, patch_bias)


def embed_tokens_backward(
    dout: Tensor, mask: Tensor | None, parameter_dtype: torch.dtype, want_bias: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dpatches [B, N, D], dmask_token [D], dcls_token [D], dpos_embed [T, D], dpatch_bias [D]).

    dout: [B, T, D]. Sums over images and patches accumulate in float32 and are returned in
    parameter_dtype; dpatch_bias is empty unless want_bias.
    """
    run = _backward if direct(dout) else _backward_op
    return run(dense_last(dout), mask, parameter_dtype, want_bias)


def embed_tokens(
    patches: Tensor,
    mask: Tensor | None,
    mask_token: Tensor,
    cls_token: Tensor,
    pos_embed: Tensor,
    patch_bias: Tensor | None = None,
) -> Tensor:
    """Tokens [B, T, D], T = N + 1, with masked patches replaced and positions added.

    patches: [B, N, D] float32, bfloat16 or float16, last stride 1. mask: int32 [B, K], no index
    twice in a row, or None. mask_token, cls_token, patch_bias: [D], pos_embed: [T, D], all of one
    dtype, float32 or that of patches. Raises ValueError naming what does not fit.
    """
    check(_NAME, "patches", patches, shape=(None, None, None))
    batch, count, width = patches.shape
    if mask is not None:
        check(_NAME, "mask", mask, shape=(batch, None), dtypes=(torch.int32,), like=patches)
    dtypes = (statistics_dtype(patches), patches.dtype)
    check(_NAME, "mask_token", mask_token, shape=(width,), dtypes=dtypes, like=patches)
    same = (mask_token.dtype,)
    check(_NAME, "cls_token", cls_token, shape=(width,), dtypes=same, like=patches)
    check(_NAME, "pos_embed", pos_embed, shape=(count + 1, width), dtypes=same, like=patches)
    if patch_bias is not None:
        check(_NAME, "patch_bias", patch_bias, shape=(width,), dtypes=same, like=patches)
    return _differentiable(patches, mask, mask_token, cls_token, pos_embed, patch_bias)


def _forward_torch(patches, mask, mask_token, cls_token, pos_embed, patch_bias):
    compute = statistics_dtype(patches)
    batch, count, width = patches.shape
    out = patches.new_empty((batch, count + 1, width), dtype=compute)
    if patch_bias is None:
        out[:, 1:] = patches
    else:
        torch.add(patches.to(compute), patch_bias.to(compute), out=out[:, 1:])
    if mask is not None:
        out.flatten(0, 1)[token_rows(mask, count + 1)] = mask_token.to(compute)
    out[:, 0] = cls_token
    out += pos_embed
    return out.to(patches.dtype)


def _backward_torch(dout, mask, parameter_dtype, want_bias):
    compute = statistics_dtype(dout)
    dpos = dout.sum(0, dtype=compute)
    dpatches = dout[:, 1:].to(compute, copy=True, memory_format=torch.contiguous_format)
    dmask_token = torch.zeros(dout.shape[-1], dtype=compute, device=dout.device)
    if mask is not None:
        rows, masked = dpatches.flatten(0, 1), token_rows(mask, dpatches.shape[1]) - 1
        by_image = rows.index_select(0, masked).view(*mask.shape, dout.shape[-1]).sum(1)
        dmask_token = by_image.sum(0)  # in two steps: short sums round little
        rows.index_fill_(0, masked, 0)
    dbias = dpatches.sum((0, 1)).to(parameter_dtype) if want_bias else None
    empty = dout.new_empty((0,), dtype=parameter_dtype)
    return (
        dpatches.to(dout.dtype),
        dmask_token.to(parameter_dtype),
        dpos[0].to(parameter_dtype, copy=True),
        dpos.to(parameter_dtype),
        dbias if dbias is not None else empty,
    )


OP = define(_NAME, part="elementwise", reference=reference, plain=_forward_torch)
embed_tokens.reference = reference  # type: ignore[attr-defined]
BACKWARD = define(f"{_NAME}_backward", part="elementwise", plain=_backward_torch, backward_of=OP)


def _setup_context(ctx, inputs, output):
    _, mask, mask_token, _, _, patch_bias = inputs
    ctx.save_for_backward(mask)
    ctx.parameter_dtype = mask_token.dtype
    ctx.want_bias = patch_bias is not None


def _autograd(ctx, dout):
    dpatches, dmask_token, dcls, dpos, dbias = embed_tokens_backward(
        dout, ctx.saved_tensors[0], ctx.parameter_dtype, ctx.want_bias
    )
    return dpatches, None, dmask_token, dcls, dpos, dbias if ctx.want_bias else None


_forward_op.register_autograd(_autograd, setup_context=_setup_context)
_differentiable = differentiable(_forward_op, _forward, _setup_context, _autograd)
