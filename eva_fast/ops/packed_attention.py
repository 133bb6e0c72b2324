"""Attention on packed projections, as the branches use it.

    out = softmax(scale q k^T) v,   lse = log sum_j exp(scale q k_j)

q, k and v come from one GEMM, side by side: packed [B, T, 3, H, d]; or, where only some tokens ask
(the last block), q [B, Tq, H, d] apart and packed [B, T, 2, H, d] = (k, v). The gradient comes
back in the same layout, so that the GEMMs before and after it need no copies. The scores never
reach memory (FlashAttention-2, Dao 2023): only out and lse, float32 [B, H, Tq], are kept.

Implementations are our own kernels and those of `attention_libraries`. On an NVIDIA GPU they are
raced, forward and backward together, when a shape is met first.

An implementation gets q, k, v as views [B, Tq or T, H, d] with last stride 1, and returns out
[B, Tq, H, d] and lse float32 [B, H, Tq], contiguous. The backward gets dout and views of the packed
gradient to fill; out may be None, then it writes out to `again`. It returns None, or a function that
gives the sums of dq and dv over all tokens, float32 [2, H d], where it has them at hand.

On a CPU, in float32, not even out need be kept: the backward forms the probabilities anyway, and one
more small product gives out again for the projection's weight gradient.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eva_fast.ops.attention_libraries import LIBRARIES, Library
from eva_fast.ops.attention_parts import (
    backward_flops,
    check_operands,
    column_sums,
    empty_outputs,
    forward_flops,
    sizes_of,
    split,
)
from eva_fast.ops.checks import contiguous_like, dense_last, nothing, statistics_dtype
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import direct
from eva_fast.ops.registry import Case, Runs, Trial, define

__all__ = ["packed_attention", "packed_attention_backward", "packed_attention_forward"]
_NAME = "packed_attention"


class AttentionShape(NamedTuple):
    """Sizes of one attention call; the batch is no part of a choice."""

    batch: int
    queries: int
    keys: int
    heads: int
    head_dim: int


def reference(q: Tensor | None, packed: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`packed_attention` in plain, differentiable PyTorch, scores and softmax in float32."""
    compute = statistics_dtype(packed)
    q, k, v = (t.to(compute).transpose(1, 2) for t in split(q, packed))
    scores = q @ k.transpose(-2, -1) * scale
    out = (scores.softmax(-1) @ v).transpose(1, 2).to(packed.dtype)
    return out.contiguous(), scores.logsumexp(-1)


def _forward(
    q: Tensor | None, packed: Tensor, scale: float, implementation: str = "auto"
) -> tuple[Tensor, Tensor]:
    if packed.numel() == 0 or (q is not None and q.numel() == 0):
        return empty_outputs(q, packed)
    q, k, v = split(q, packed)
    return chosen(OP, q, sizes_of(q, k), implementation)(q, k, v, scale)


_forward_op = torch.library.custom_op("eva_fast::packed_attention", mutates_args=())(_forward)


@_forward_op.register_fake
def _(q, packed, scale, implementation="auto"):
    return empty_outputs(q, packed)


def _gradients(
    dout: Tensor, q: Tensor | None, packed: Tensor, out: Tensor | None, lse: Tensor, scale: float,
    implementation: str, want_sums: bool,
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """dq, dpacked, out and the sums; None for what is not apart, was kept or is not wanted."""
    dpacked = contiguous_like(packed)
    dq = None if q is None else contiguous_like(q)
    again = None if out is not None else dout.new_empty(dout.shape)
    sums = None
    if dout.numel() == 0:
        dpacked.zero_()
    else:
        gradients = split(dq, dpacked)
        q, k, v = split(q, packed)
        sums = chosen(BACKWARD, q, sizes_of(q, k), implementation)(
            dout, q, k, v, out, lse, scale, *gradients, again
        )
    if not want_sums:
        return dq, dpacked, again, None
    total = sums() if sums is not None else column_sums(dq, dpacked, lse.dtype)
    return dq, dpacked, again, total


def _backward(
    dout: Tensor, q: Tensor | None, packed: Tensor, out: Tensor | None, lse: Tensor, scale: float,
    implementation: str = "auto", want_sums: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dpacked, again, sums = _gradients(
        dout, q, packed, out, lse, scale, implementation, want_sums
    )
    return (
        nothing(packed) if dq is None else dq,
        dpacked,
        nothing(packed) if again is None else again,
        nothing(lse) if sums is None else sums,
    )


_backward_op = torch.library.custom_op("eva_fast::packed_attention_backward", mutates_args=())(
    _backward
)


@_backward_op.register_fake
def _(dout, q, packed, out, lse, scale, implementation="auto", want_sums=False):
    width = dout.shape[-2] * dout.shape[-1]
    return (
        nothing(packed) if q is None else q.new_empty(q.shape),
        packed.new_empty(packed.shape),
        nothing(packed) if out is not None else dout.new_empty(dout.shape),
        lse.new_empty((2, width) if want_sums else (0,)),
    )


def recomputes_output(packed: Tensor) -> bool:
    """Whether a branch should let the backward compute out again instead of keeping it: where the C++
    kernels run, whose backward has it at hand. In 16 bits a library does, and would attend twice."""
    on_cpu = packed.device.type == "cpu" and packed.dtype == torch.float32
    return on_cpu and not _keeping_output


_keeping_output = False


@contextlib.contextmanager
def keeping_output() -> Iterator[None]:
    """For the block a CPU keeps out as a GPU does: for who counts a GPU's memory on one."""
    global _keeping_output
    before, _keeping_output = _keeping_output, True
    try:
        yield
    finally:
        _keeping_output = before


def packed_attention_forward(
    q: Tensor | None, packed: Tensor, scale: float, implementation: str = "auto"
) -> tuple[Tensor, Tensor]:
    """`packed_attention` without the checks, for functions that bring their own backward."""
    return (_forward if direct(packed) else _forward_op)(q, packed, scale, implementation)


class AttentionGradients(NamedTuple):
    """What `packed_attention_backward` gives. What is not there is None or an empty tensor."""

    dq: Tensor | None
    """[B, Tq, H, d]; not there where q is a part of the packed tensor."""
    dpacked: Tensor
    out: Tensor
    """[B, Tq, H, d]: as given, or computed again."""
    sums: Tensor | None
    """[2, H d], of lse's dtype: dq and dv summed over batch and tokens, the gradients of biases of q
    and v; not there unless wanted."""


def packed_attention_backward(
    dout: Tensor, q: Tensor | None, packed: Tensor, out: Tensor | None, lse: Tensor, scale: float,
    implementation: str = "auto", want_sums: bool = False,
) -> AttentionGradients:  # fmt: skip
    """From dout [B, Tq, H, d]. out None: it was not kept, and is computed again."""
    run = _gradients if direct(packed) else _backward_op
    dq, dpacked, again, sums = run(
        dense_last(dout), q, packed, out, lse, scale, implementation, want_sums
    )
    return AttentionGradients(dq, dpacked, again if out is None else out, sums)  # type: ignore[arg-type]


def packed_attention(
    q: Tensor | None, packed: Tensor, scale: float, implementation: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(out [B, Tq, H, d], lse [B, H, Tq]); lse carries no gradient.

    packed: [B, T, 3, H, d], or [B, T, 2, H, d] with q [B, Tq, H, d] apart; float32, bfloat16 or
    float16, last stride 1. implementation: the one to run, by name, or "auto" for the chosen one.
    Raises ValueError naming what does not fit.
    """
    check_operands(_NAME, q, packed)
    return _forward_op(q, packed, scale, implementation)


def case_label(case: Case) -> str:
    """What a race of these sizes is kept under."""
    _, queries, keys, heads, dim = case.sizes
    dtype = str(case.dtype).removeprefix("torch.")
    return f"attention {queries}x{keys}, {heads} heads of {dim}, {dtype}"


def _trial_runs(case: Case, names: Sequence[str]) -> Runs:
    """Forward and backward on packed projections."""
    batch, queries, keys, heads, dim = case.sizes
    options: dict[str, Any] = {"dtype": case.dtype, "device": case.device}
    packed = torch.randn((batch, keys, 3, heads, dim), **options)
    q, k, v = packed.unbind(2)
    if queries != keys:
        q = torch.randn((batch, queries, heads, dim), **options)
    dout, dq = torch.randn(q.shape, **options), torch.empty_like(q)
    dk, dv = torch.empty_like(packed).unbind(2)[1:]
    scale = dim**-0.5

    def run(name: str) -> None:
        out, lse = OP.function(name)(q, k, v, scale)
        BACKWARD.function(name)(dout, q, k, v, out, lse, scale, dq, dk, dv, None)

    return {name: functools.partial(run, name) for name in names}


def _backward_of(library: Library) -> Callable[..., None]:
    def backward(dout, q, k, v, out, lse, scale, dq, dk, dv, again=None):
        if out is None:
            out = again.copy_(library.forward(q, k, v, scale)[0])
        library.backward(dout, q, k, v, out, lse, scale, dq, dk, dv)

    return backward


OP = define(
    _NAME,
    part="attention",
    reference=reference,
    flops=forward_flops,
    trial=Trial(device_type="cuda", label=case_label, runs=_trial_runs),
)
BACKWARD = define(
    f"{_NAME}_backward", part="attention", flops=backward_flops, kernels=3, backward_of=OP
)
for _library in LIBRARIES:
    for _op, _function in ((OP, _library.forward), (BACKWARD, _backward_of(_library))):
        _op.add(
            _library.name,
            _function,
            family=_library.family,
            limits=_library.limits,
            last_resort=_library.last_resort,
        )
for _op in (OP, BACKWARD):
    _op.prefer("native", "flash_attn_3", "cudnn", "flash_attn_2", "flash", "triton")
packed_attention.reference = reference  # type: ignore[attr-defined]


def _setup_context(ctx, inputs, output):
    q, packed, ctx.scale, ctx.implementation = inputs
    ctx.save_for_backward(q, packed, *output)
    ctx.mark_non_differentiable(output[1])


def _autograd(ctx, dout, _dlse):
    q, packed, out, lse = ctx.saved_tensors
    dq, dpacked, *_ = packed_attention_backward(
        dout, q, packed, out, lse, ctx.scale, ctx.implementation
    )
    return None if q is None else dq, dpacked, None, None


_forward_op.register_autograd(_autograd, setup_context=_setup_context)
