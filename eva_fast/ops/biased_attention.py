"""Attention with an additive bias, as relative position biases want it (BEiT, Swin).

    s = scale q k^T + bias (+ mask),   out = softmax(s) v,   lse = log sum_j exp(s_j)

q, k, v lie as in `packed_attention`. The bias [H, Tq, T] is one for the whole batch and has a
gradient. Of windows (Swin), a batch row b is a window and mask [W, Tq, T] holds what a shifted
window may not see: row b gets mask[b % W], which has no gradient. Cosine attention is this op with q
and k normalised and scaled, and scale 1.

With dout, the rows of one head as matrices, and delta = sum_j P dP (= dout . out):

    P = exp(s - lse),  dP = dout v^T,  dS = P (dP - delta)
    dq = scale dS k,   dk = scale dS^T q,   dv = P^T dout,   dbias = sum over the batch of dS

(Dao 2023, FlashAttention-2, algorithm 2.) PyTorch's fused attention returns no gradient of a bias,
or one for every image; here the sum over the batch is a part of the op, in a fixed order: the same
bits every time.

An implementation gets q, k, v as views [B, Tq or T, H, d] with last stride 1, bias and mask
contiguous, and returns out [B, Tq, H, d] and lse float32 [B, H, Tq], contiguous. The backward fills
views of the packed gradient and dbias; out may be None, then it writes out to `again`. It returns
None, or a function that gives the sums of dq and dv over all tokens, float32 [2, H d].
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eva_fast.ops.attention_parts import (
    backward_flops,
    check_operands,
    column_sums,
    empty_outputs,
    forward_flops,
    sizes_of,
    split,
)
from eva_fast.ops.checks import check, check_constant, dense_last, nothing, statistics_dtype
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import direct
from eva_fast.ops.registry import define

__all__ = ["biased_attention", "biased_attention_backward", "biased_attention_forward"]
_NAME = "biased_attention"


def reference(
    q: Tensor | None, packed: Tensor, bias: Tensor, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`biased_attention` in plain, differentiable PyTorch, scores and softmax in float32."""
    q, k, v = split(q, packed)
    scores = _scores(q, k, bias, mask, scale)
    out = scores.softmax(-1) @ v.to(scores.dtype).transpose(1, 2)
    return out.transpose(1, 2).to(packed.dtype).contiguous(), scores.logsumexp(-1)


def _scores(q: Tensor, k: Tensor, bias: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """[B, H, Tq, T], float32 (float64 of float64)."""
    q, k = (t.to(statistics_dtype(t)).transpose(1, 2) for t in (q, k))
    scores = (q * scale) @ k.transpose(-2, -1) + bias
    if mask is None:
        return scores
    by_window = scores.unflatten(0, (-1, len(mask)))  # [B / W, W, H, Tq, T]
    return (by_window + mask.to(scores.dtype)[:, None]).flatten(0, 1)


def _forward_torch(q, k, v, bias, mask, scale):
    scores = _scores(q, k, bias, mask, scale)
    lse = scores.logsumexp(-1)
    out = scores.softmax(-1) @ v.to(scores.dtype).transpose(1, 2)
    return out.transpose(1, 2).to(q.dtype).contiguous(), lse


def _backward_torch(dout, q, k, v, bias, mask, out, lse, scale, dq, dk, dv, dbias, again):
    # with P in memory, rows that sum to one and delta as P . dP round less than exp(scores - lse)
    # and dout . out do
    p = _scores(q, k, bias, mask, scale).softmax(-1)
    do, q_, k_, v_ = (t.to(p.dtype).transpose(1, 2) for t in (dout, q, k, v))
    if out is None:
        again.copy_((p @ v_).transpose(1, 2))
    dv.copy_((p.transpose(-2, -1) @ do).transpose(1, 2))
    dp = do @ v_.transpose(-2, -1)
    ds = dp.sub_((p * dp).sum(-1, keepdim=True)).mul_(p)
    torch.sum(ds, 0, out=dbias)
    ds *= scale
    dq.copy_((ds @ k_).transpose(1, 2))
    dk.copy_((ds.transpose(-2, -1) @ q_).transpose(1, 2))


def _forward(
    q: Tensor | None, packed: Tensor, bias: Tensor, mask: Tensor | None, scale: float,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if packed.numel() == 0 or (q is not None and q.numel() == 0):
        return empty_outputs(q, packed)
    q, k, v = split(q, packed)
    run = chosen(OP, q, sizes_of(q, k), implementation)
    return run(q, k, v, bias.contiguous(), None if mask is None else mask.contiguous(), scale)


_forward_op = torch.library.custom_op(f"eva_fast::{_NAME}", mutates_args=())(_forward)


@_forward_op.register_fake
def _(q, packed, bias, mask, scale, implementation="auto"):
    return empty_outputs(q, packed)


def _backward(
    dout: Tensor, q: Tensor | None, packed: Tensor, bias: Tensor, mask: Tensor | None,
    out: Tensor | None, lse: Tensor, scale: float, want_sums: bool = False,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dpacked = torch.empty(packed.shape, dtype=packed.dtype, device=packed.device)
    dq = (
        nothing(packed) if q is None else torch.empty_like(q, memory_format=torch.contiguous_format)
    )
    dbias = torch.empty(bias.shape, dtype=bias.dtype, device=bias.device)
    again = nothing(packed) if out is not None else dout.new_empty(dout.shape)
    sums = None
    if dout.numel() == 0:
        dpacked.zero_()
        dbias.zero_()
    else:
        gradients = split(None if q is None else dq, dpacked)
        q, k, v = split(q, packed)
        sums = chosen(BACKWARD, q, sizes_of(q, k), implementation)(
            dout, q, k, v, bias.contiguous(), None if mask is None else mask.contiguous(), out, lse,
            scale, *gradients, dbias, again,
        )  # fmt: skip
    if not want_sums:
        total = nothing(lse)
    elif sums is not None:
        total = sums()
    else:
        total = column_sums(dq, dpacked, lse.dtype)
    return dq, dpacked, again, total, dbias


_backward_op = torch.library.custom_op(f"eva_fast::{_NAME}_backward", mutates_args=())(_backward)


@_backward_op.register_fake
def _(dout, q, packed, bias, mask, out, lse, scale, want_sums=False, implementation="auto"):
    width = dout.shape[-2] * dout.shape[-1]
    return (
        nothing(packed) if q is None else q.new_empty(q.shape),
        packed.new_empty(packed.shape),
        nothing(packed) if out is not None else dout.new_empty(dout.shape),
        lse.new_empty((2, width) if want_sums else (0,)),
        bias.new_empty(bias.shape),
    )


def biased_attention_forward(
    q: Tensor | None, packed: Tensor, bias: Tensor, mask: Tensor | None, scale: float,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`biased_attention` without the checks, for functions that bring their own backward."""
    run = _forward if direct(packed) else _forward_op
    return run(q, packed, bias, mask, scale, implementation)


class BiasedGradients(NamedTuple):
    """What `biased_attention_backward` gives."""

    dq: Tensor
    """[B, Tq, H, d]; empty where q is a part of the packed tensor."""
    dpacked: Tensor
    out: Tensor
    """[B, Tq, H, d]: as given, or computed again."""
    bias_sums: Tensor
    """[2, H d], of lse's dtype: dq and dv summed over batch and tokens, the gradients of biases of the
    projections to q and v; empty unless wanted."""
    dbias: Tensor
    """[H, Tq, T], the gradient of the scores' bias."""


def biased_attention_backward(
    dout: Tensor, q: Tensor | None, packed: Tensor, bias: Tensor, mask: Tensor | None,
    out: Tensor | None, lse: Tensor, scale: float, want_sums: bool = False,
    implementation: str = "auto",
) -> BiasedGradients:  # fmt: skip
    """From dout [B, Tq, H, d]. out None: it was not kept, and is computed again."""
    run = _backward if direct(packed) else _backward_op
    dq, dpacked, again, sums, dbias = run(
        dense_last(dout), q, packed, bias, mask, out, lse, scale, want_sums, implementation
    )
    return BiasedGradients(dq, dpacked, again if out is None else out, sums, dbias)


def biased_attention(
    q: Tensor | None, packed: Tensor, bias: Tensor, scale: float, mask: Tensor | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out [B, Tq, H, d], lse [B, H, Tq]); lse carries no gradient.

    packed: [B, T, 3, H, d], or [B, T, 2, H, d] with q [B, Tq, H, d] apart; float32, bfloat16 or
    float16, last stride 1. bias: float32 [H, Tq, T]. mask: finite float32 [W, Tq, T], W a divisor of
    B, for windows: batch row b takes mask[b % W]. implementation: the one to run, by name, or "auto"
    for the chosen one. Raises ValueError naming what does not fit.
    """
    check_operands(_NAME, q, packed)
    batch, keys, _, heads, _ = packed.shape
    queries = keys if q is None else q.shape[1]
    dtypes = (statistics_dtype(packed),)
    check(_NAME, "bias", bias, shape=(heads, queries, keys), dtypes=dtypes, like=packed)
    if mask is not None:
        check(_NAME, "mask", mask, shape=(None, queries, keys), dtypes=dtypes, like=packed)
        check_constant(_NAME, "mask", mask)
        if len(mask) == 0 or batch % len(mask):
            raise ValueError(
                f"{_NAME}: mask is of {len(mask)} windows, expected a divisor of the batch, {batch}"
            )
    return _forward_op(q, packed, bias, mask, scale, implementation)


OP = define(_NAME, part="attention", reference=reference, plain=_forward_torch, flops=forward_flops)
BACKWARD = define(
    f"{_NAME}_backward", part="attention", plain=_backward_torch, flops=backward_flops, kernels=4,
    backward_of=OP,
)  # fmt: skip
biased_attention.reference = reference  # type: ignore[attr-defined]


def _setup_context(ctx, inputs, output):
    q, packed, bias, mask, ctx.scale, ctx.implementation = inputs
    ctx.save_for_backward(q, packed, bias, mask, *output)
    ctx.mark_non_differentiable(output[1])


def _autograd(ctx, dout, _dlse):
    q, packed, bias, mask, out, lse = ctx.saved_tensors
    found = biased_attention_backward(
        dout, q, packed, bias, mask, out, lse, ctx.scale, False, ctx.implementation
    )
    return None if q is None else found.dq, found.dpacked, found.dbias, None, None, None


_forward_op.register_autograd(_autograd, setup_context=_setup_context)
