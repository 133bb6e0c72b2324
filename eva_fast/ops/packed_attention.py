"""Attention on packed projections, as the branches use it.

    out = softmax(scale q k^T) v,   lse = log sum_j exp(scale q k_j)

q, k and v come from one GEMM, side by side: packed [B, T, 3, H, d]; or, where only some tokens ask
(the last block), q [B, Tq, H, d] apart and packed [B, T, 2, H, d] = (k, v). The gradient comes
back in the same layout, so that the GEMMs before and after it need no copies. The scores never
reach memory (FlashAttention-2, Dao 2023): only out and lse, float32 [B, H, Tq], are kept.

Which library computes it is chosen by `attention_choice` among `attention_backends`; it gets q, k, v
as views [B, Tq or T, H, d] and fills views of the packed gradient. The C++ kernels of
csrc/ops/attention.h come before them on CPUs.

On a CPU not even out need be kept: the backward forms the probabilities anyway, and one more small
product gives out again for the projection's weight gradient.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import (
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from eva_fast.ops import dispatch
from eva_fast.ops.attention_choice import backend_of
from eva_fast.ops.checks import check, dense_last, nothing, statistics_dtype

_OP = "packed_attention"


def _split(q: Tensor | None, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    parts = packed.unbind(2)
    return parts if q is None else (q, *parts)  # type: ignore[return-value]


def reference(q: Tensor | None, packed: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`packed_attention` in plain, differentiable PyTorch, scores and softmax in float32."""
    compute = statistics_dtype(packed)
    q, k, v = (t.to(compute).transpose(1, 2) for t in _split(q, packed))
    scores = q @ k.transpose(-2, -1) * scale
    out = (scores.softmax(-1) @ v).transpose(1, 2).to(packed.dtype)
    return out.contiguous(), scores.logsumexp(-1)


def _empty_outputs(q: Tensor | None, packed: Tensor) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, dim = packed.select(2, 0).shape if q is None else q.shape
    out = packed.new_empty((batch, tokens, heads, dim))
    return out, packed.new_empty((batch, heads, tokens), dtype=statistics_dtype(packed))


@torch.library.custom_op("eva_fast::packed_attention", mutates_args=())
def _forward_op(
    q: Tensor | None, packed: Tensor, scale: float, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    if packed.numel() == 0 or (q is not None and q.numel() == 0):
        return _empty_outputs(q, packed)
    return dispatch.function(_OP, packed)(*_split(q, packed), scale, backend)


@_forward_op.register_fake
def _(q, packed, scale, backend="auto"):
    return _empty_outputs(q, packed)


@torch.library.custom_op("eva_fast::packed_attention_backward", mutates_args=())
def _backward_op(
    dout: Tensor, q: Tensor | None, packed: Tensor, out: Tensor | None, lse: Tensor, scale: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dpacked = torch.empty(packed.shape, dtype=packed.dtype, device=packed.device)
    dq = (
        nothing(packed) if q is None else torch.empty_like(q, memory_format=torch.contiguous_format)
    )
    again = nothing(packed) if out is not None else dout.new_empty(dout.shape)
    if dout.numel() == 0:
        return dq, dpacked.zero_(), again
    gradients = _split(None if q is None else dq, dpacked)
    dispatch.function(f"{_OP}_backward", packed)(
        dout, *_split(q, packed), out, lse, scale, *gradients, again, backend
    )
    return dq, dpacked, again


@_backward_op.register_fake
def _(dout, q, packed, out, lse, scale, backend="auto"):
    return (
        nothing(packed) if q is None else q.new_empty(q.shape),
        packed.new_empty(packed.shape),
        nothing(packed) if out is not None else dout.new_empty(dout.shape),
    )


def recomputes_output(packed: Tensor) -> bool:
    """Whether a branch should let the backward compute out again instead of keeping it."""
    return packed.device.type == "cpu"


def packed_attention_forward(
    q: Tensor | None, packed: Tensor, scale: float, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """`packed_attention` without the checks, for functions that bring their own backward."""
    return _forward_op(q, packed, scale, backend)


def packed_attention_backward(
    dout: Tensor, q: Tensor | None, packed: Tensor, out: Tensor | None, lse: Tensor, scale: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dpacked, out) from dout [B, Tq, H, d]; dq is empty where q is None. out None: it was not
    kept, and is computed again."""
    dq, dpacked, again = _backward_op(dense_last(dout), q, packed, out, lse, scale, backend)
    return dq, dpacked, again if out is None else out


def packed_attention(
    q: Tensor | None, packed: Tensor, scale: float, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(out [B, Tq, H, d], lse [B, H, Tq]); lse carries no gradient.

    packed: [B, T, 3, H, d], or [B, T, 2, H, d] with q [B, Tq, H, d] apart; float32, bfloat16 or
    float16, last stride 1. backend: a name of `attention_backends.BACKENDS`, or "auto" for the
    measured choice. Raises ValueError naming what does not fit.
    """
    check(_OP, "packed", packed, shape=(None, None, 3 if q is None else 2, None, None))
    if q is not None:
        batch, _, _, heads, dim = packed.shape
        check(_OP, "q", q, shape=(batch, None, heads, dim), dtypes=(packed.dtype,), like=packed)
    return _forward_op(q, packed, scale, backend)


packed_attention.reference = reference  # type: ignore[attr-defined]


def forward_chosen(q, k, v, scale, backend):
    return backend_of(backend, q, k).forward(q, k, v, scale)


def backward_chosen(dout, q, k, v, out, lse, scale, dq, dk, dv, again, backend):
    chosen = backend_of(backend, q, k)
    if out is None:
        out = again.copy_(chosen.forward(q, k, v, scale)[0])
    chosen.backward(dout, q, k, v, out, lse, scale, dq, dk, dv)


# The C++ kernels hand over to these where they do not fit (16 bit, a backend asked for by name).
dispatch.register(_OP, "torch", forward_chosen)
dispatch.register(f"{_OP}_backward", "torch", backward_chosen)


def _setup_context(ctx, inputs, output):
    q, packed, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(q, packed, *output)
    ctx.mark_non_differentiable(output[1])


def _autograd(ctx, dout, _dlse):
    q, packed, out, lse = ctx.saved_tensors
    dq, dpacked, _ = packed_attention_backward(dout, q, packed, out, lse, ctx.scale, ctx.backend)
    return None if q is None else dq, dpacked, None, None


_forward_op.register_autograd(_autograd, setup_context=_setup_context)


@register_flop_formula(torch.ops.eva_fast.packed_attention)
def _flops(q, packed, *_, out_shape=None, **__) -> int:
    q_shape, kv = _head_shapes(q, packed)
    return sdpa_flop_count(q_shape, kv, kv)


@register_flop_formula(torch.ops.eva_fast.packed_attention_backward)
def _backward_flops(dout, q, packed, *_, out_shape=None, **__) -> int:
    q_shape, kv = _head_shapes(q, packed)
    return sdpa_backward_flop_count(q_shape, q_shape, kv, kv)


def _head_shapes(q, packed):
    # register_flop_formula hands over shapes in place of tensors
    batch, tokens, _, heads, dim = packed
    queries = tokens if q is None else q[1]
    return (batch, heads, queries, dim), (batch, heads, tokens, dim)
