"""`packed_attention` beside 8-bit products: what they read comes in 8 bits.

    out, lse as in packed_attention;  q = out / out_scale in e4m3, of out as rounded to 16 bits
    backward: dqkv in 16 bits, parts of its largest magnitude, and the transpose of q

No output is larger than the largest v, of which it is a mean, so the scale is known before anything is
computed (`branch_scales`). The forward writes out twice, in 16 bits for its own backward, which wants
dout . out exactly, and in 8 for the projection; the backward reads it for that and writes it by columns,
for the gradient of the projection's weight. A gradient has no bound of the kind (a column of
probabilities can sum to T): dqkv comes in 16 bits, with its largest magnitude found on the way.

An implementation is our kernels, or any of `packed_attention` with the quantising in passes of its own:
a library writes 16 bits alone. On an NVIDIA GPU both are raced when a shape is met first. An
implementation gets the custom op's arguments and returns contiguous tensors.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eva_fast.ops.attention_parts import backward_flops, check_operands, forward_flops, sizes_of
from eva_fast.ops.checks import check, dense_last, nothing, statistics_dtype
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import direct
from eva_fast.ops.packed_attention import (
    case_label,
    packed_attention_backward,
    packed_attention_forward,
)
from eva_fast.ops.packed_attention import reference as attention
from eva_fast.ops.quantise_fp8 import padded, quantise_unchecked
from eva_fast.ops.quantise_fp8 import reference as quantise
from eva_fast.ops.registry import Case, Runs, Trial, define

__all__ = ["packed_attention_fp8", "packed_attention_fp8_backward"]
_NAME = "packed_attention_fp8"
FORMAT = torch.float8_e4m3fn


class AttentionGradients(NamedTuple):
    """What `packed_attention_fp8_backward` gives."""

    dpacked: Tensor
    out: Tensor
    """out / out_scale by columns, [H d, B T padded with zeros to a multiple of 16]."""
    sums: Tensor
    """[2, H d]: dq and dv summed over batch and tokens; empty unless wanted."""
    largest: Tensor
    """Float32 [2], parts of the largest magnitude of dpacked."""


def reference(packed: Tensor, scale: float, out_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`packed_attention_fp8` in plain PyTorch."""
    out, lse = attention(None, packed, scale)
    q = quantise(out.flatten(2).flatten(0, 1), out_scale, FORMAT, True, False).rows
    return out, q.view(out.shape), lse


def _forward_plain(packed, scale, out_scale):
    out, lse = packed_attention_forward(None, packed, scale)
    q = quantise_unchecked(_rows(out), out_scale, FORMAT, True, False).rows
    return out, q.view(out.shape), lse


def _backward_plain(dout, packed, out, lse, scale, out_scale, want_sums):
    _, dpacked, out, sums = packed_attention_backward(
        dout, None, packed, out, lse, scale, want_sums=want_sums
    )
    q = quantise_unchecked(_rows(out), out_scale, FORMAT, False, True)
    largest = lse.new_empty(2)
    if dpacked.numel():
        largest.copy_(torch.stack([part.abs().amax() for part in dpacked.split((1, 2), 2)]))
    else:
        largest.zero_()
    return dpacked, q.columns, sums if want_sums else nothing(lse), largest


def _rows(out: Tensor) -> Tensor:
    return out.view(-1, out.shape[-2] * out.shape[-1])


def _forward(packed: Tensor, scale: float, out_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, _ = packed.unbind(2)
    if packed.numel() == 0:
        return _outputs(packed)
    return chosen(OP, packed, sizes_of(query, key))(packed, scale, out_scale)


_forward_op = torch.library.custom_op(f"eva_fast::{_NAME}", mutates_args=())(_forward)


def _outputs(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for out, out in 8 bits and lse."""
    batch, tokens, _, heads, dim = packed.shape
    out = packed.new_empty((batch, tokens, heads, dim))
    lse = packed.new_empty((batch, heads, tokens), dtype=statistics_dtype(packed))
    return out, torch.empty_like(out, dtype=FORMAT), lse


@_forward_op.register_fake
def _(packed, scale, out_scale):
    return _outputs(packed)


def _backward(
    dout: Tensor, packed: Tensor, out: Tensor | None, lse: Tensor, scale: float, out_scale: Tensor,
    want_sums: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    query, key, _ = packed.unbind(2)
    implementation = _backward_plain
    if packed.numel():
        implementation = chosen(BACKWARD, packed, sizes_of(query, key))
    return implementation(dout, packed, out, lse, scale, out_scale, want_sums)


_backward_op = torch.library.custom_op(f"eva_fast::{_NAME}_backward", mutates_args=())(_backward)


@_backward_op.register_fake
def _(dout, packed, out, lse, scale, out_scale, want_sums):
    batch, tokens, _, heads, dim = packed.shape
    width = heads * dim
    return (
        packed.new_empty(packed.shape),
        packed.new_empty((width, padded(batch * tokens)), dtype=FORMAT),
        lse.new_empty((2, width) if want_sums else (0,)),
        lse.new_empty((2,)),
    )


def packed_attention_fp8(
    packed: Tensor, scale: float, out_scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(out [B, T, H, d], out / out_scale as float8_e4m3fn, lse [B, H, T]) of packed [B, T, 3, H, d].

    packed: float32, bfloat16 or float16. out_scale: float32 [], a power of two; what lies beyond it
    becomes the largest value. Not differentiable. ValueError naming what does not fit.
    """
    _check(packed, out_scale)
    return attention_unchecked(packed.detach(), scale, out_scale)


def packed_attention_fp8_backward(
    dout: Tensor, packed: Tensor, out: Tensor | None, lse: Tensor, scale: float, out_scale: Tensor,
    want_sums: bool = False,
) -> AttentionGradients:  # fmt: skip
    """From dout [B, T, H, d], and out and lse of the forward. out None: it was not kept, and is computed
    again."""
    _check(packed, out_scale)
    batch, tokens, _, heads, dim = packed.shape
    shape = (batch, tokens, heads, dim)
    check(_NAME, "dout", dout, shape=shape, dtypes=(packed.dtype,), like=packed)
    if out is not None:
        check(_NAME, "out", out, shape=shape, dtypes=(packed.dtype,), like=packed)
    with torch.no_grad():
        return attention_backward_unchecked(dout, packed, out, lse, scale, out_scale, want_sums)


def _check(packed: Tensor, out_scale: Tensor) -> None:
    check_operands(_NAME, None, packed)
    check(_NAME, "out_scale", out_scale, shape=(), dtypes=(torch.float32,), like=packed)


def attention_unchecked(packed, scale, out_scale) -> tuple[Tensor, Tensor, Tensor]:
    """`packed_attention_fp8` without the checks, for functions that bring their own backward."""
    return (_forward if direct(packed) else _forward_op)(packed, scale, out_scale)


def attention_backward_unchecked(
    dout, packed, out, lse, scale, out_scale, want_sums
) -> AttentionGradients:
    """`packed_attention_fp8_backward` without the checks."""
    run = _backward if direct(packed) else _backward_op
    return AttentionGradients(*run(dense_last(dout), packed, out, lse, scale, out_scale, want_sums))


def _trial_runs(case: Case, names: Sequence[str]) -> Runs:
    """Forward and backward."""
    batch, tokens, _, heads, dim = case.sizes
    options: dict[str, Any] = {"dtype": case.dtype, "device": case.device}
    packed = torch.randn((batch, tokens, 3, heads, dim), **options)
    dout = torch.randn((batch, tokens, heads, dim), **options)
    out_scale, scale = torch.full((), 2.0**-6, device=case.device), dim**-0.5

    def run(name: str) -> None:
        out, _, lse = OP.function(name)(packed, scale, out_scale)
        BACKWARD.function(name)(dout, packed, out, lse, scale, out_scale, True)

    return {name: functools.partial(run, name) for name in names}


def _flops(packed, *_, **__) -> int:
    return forward_flops(None, packed)


def _backward_flops(dout, packed, *_, **__) -> int:
    return backward_flops(dout, None, packed)


OP = define(
    _NAME,
    part="attention",
    reference=reference,
    plain=_forward_plain,
    flops=_flops,
    trial=Trial(
        device_type="cuda",
        label=lambda case: f"{case_label(case)}, out in 8 bits",
        runs=_trial_runs,
    ),
)
BACKWARD = define(
    f"{_NAME}_backward", part="attention", kernels=5, plain=_backward_plain,
    flops=_backward_flops, backward_of=OP,
)  # fmt: skip
packed_attention_fp8.reference = reference  # type: ignore[attr-defined]
