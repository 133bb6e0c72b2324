"""From embeddings of some patches to the first block's tokens, in one pass.

    out[b, 0]     = cls + pos[0]
    out[b, 1 + k] = patches[b, k] + c + pos[1 + kept[b, k]]

as in an encoder that sees only the visible patches (MAE, He et al. 2021; its position table is fixed).
c is the patch embedding's bias: here, its gradient is a column sum of rows that the backward reads
anyway. The backward is `embed_tokens_backward` without a mask:

    dpatches = dout of the patches,  dcls = sum over images of dout[:, 0],  dc = sum of dpatches

An implementation gets patches [B, K, D] with last stride 1, kept int32 [B, K] contiguous, pos [T, D]
with last stride 1; and returns a contiguous [B, 1 + K, D].
"""

import torch
from torch import Tensor

from eva_fast.ops.checks import check, check_constant, statistics_dtype
from eva_fast.ops.choose import chosen
from eva_fast.ops.embed_tokens import embed_tokens_backward
from eva_fast.ops.registry import define

__all__ = ["embed_kept"]
_NAME = "embed_kept"


def reference(
    patches: Tensor,
    kept: Tensor,
    cls_token: Tensor,
    pos_embed: Tensor,
    patch_bias: Tensor | None = None,
) -> Tensor:
    """`embed_kept` in plain, differentiable PyTorch; 16-bit inputs compute in float32."""
    compute = statistics_dtype(patches)
    tokens = patches.to(compute) + pos_embed.to(compute)[1 + kept.long()]
    if patch_bias is not None:
        tokens = tokens + patch_bias.to(compute)
    cls_row = cls_token.to(compute) + pos_embed[0].to(compute)
    return torch.cat((cls_row.expand(len(patches), 1, -1), tokens), 1).to(patches.dtype)


@torch.library.custom_op("eva_fast::embed_kept", mutates_args=())
def _op(
    patches: Tensor,
    kept: Tensor,
    cls_token: Tensor,
    pos_embed: Tensor,
    patch_bias: Tensor | None,
) -> Tensor:
    return chosen(OP, patches)(patches, kept.contiguous(), cls_token, pos_embed, patch_bias)


@_op.register_fake
def _(patches, kept, cls_token, pos_embed, patch_bias):
    batch, count, width = patches.shape
    return patches.new_empty((batch, count + 1, width))


def embed_kept(
    patches: Tensor,
    kept: Tensor,
    cls_token: Tensor,
    pos_embed: Tensor,
    patch_bias: Tensor | None = None,
) -> Tensor:
    """Tokens [B, 1 + K, D]: CLS and the patches `kept`, positions added.

    patches: [B, K, D] float32, bfloat16 or float16, last stride 1. kept: int32 [B, K], which patch
    each row is, in [0, T - 1) (on a GPU the values are not read, so not checked). cls_token, patch_bias:
    [D], of one dtype, float32 or that of patches; gradients for these and patches. pos_embed: [T, D],
    a constant. Raises ValueError naming what does not fit.
    """
    check(_NAME, "patches", patches, shape=(None, None, None))
    batch, count, width = patches.shape
    check(_NAME, "kept", kept, shape=(batch, count), dtypes=(torch.int32,), like=patches)
    dtypes = (statistics_dtype(patches), patches.dtype)
    check(_NAME, "cls_token", cls_token, shape=(width,), dtypes=dtypes, like=patches)
    check(_NAME, "pos_embed", pos_embed, shape=(None, width), dtypes=dtypes, like=patches)
    check_constant(_NAME, "pos_embed", pos_embed)
    if patch_bias is not None:
        same = (cls_token.dtype,)
        check(_NAME, "patch_bias", patch_bias, shape=(width,), dtypes=same, like=patches)
    return _op(patches, kept, cls_token, pos_embed, patch_bias)


def _forward_torch(patches, kept, cls_token, pos_embed, patch_bias):
    compute = statistics_dtype(patches)
    batch, count, width = patches.shape
    out = patches.new_empty((batch, count + 1, width), dtype=compute)
    rows = pos_embed.index_select(0, 1 + kept.flatten()).view(batch, count, width)
    torch.add(patches.to(compute), rows.to(compute), out=out[:, 1:])
    if patch_bias is not None:
        out[:, 1:] += patch_bias
    out[:, 0] = cls_token.to(compute) + pos_embed[0].to(compute)
    return out.to(patches.dtype)


OP = define(_NAME, part="elementwise", reference=reference, plain=_forward_torch)
embed_kept.reference = reference  # type: ignore[attr-defined]


def _setup_context(ctx, inputs, output):
    ctx.parameter_dtype = inputs[2].dtype
    ctx.want_bias = inputs[4] is not None


def _autograd(ctx, dout):
    dpatches, _, dcls, _, dbias = embed_tokens_backward(
        dout, None, ctx.parameter_dtype, ctx.want_bias
    )
    return dpatches, None, dcls, None, dbias if ctx.want_bias else None


_op.register_autograd(_autograd, setup_context=_setup_context)
