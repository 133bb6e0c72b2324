"""GELU of h + b, and a backward that rebuilds the activation.

    erf:    gelu(z) = z Phi(z), Phi(z) = (1 + erf(z / sqrt 2)) / 2     Hendrycks & Gimpel 2016
            gelu'(z) = Phi(z) + z phi(z), phi(z) = exp(-z^2 / 2) / sqrt(2 pi)
    tanh:   z s, s = sigmoid(u), u = sqrt(8 / pi) (z + 0.044715 z^3)    its approximation there: SigLIP's
            derivative s + z s (1 - s) u'                               (0.5 (1 + tanh(u / 2)) = s)
    quick:  the same with u = 1.702 z                                  QuickGELU of OpenAI's CLIP

The backward writes dh = dg * gelu'(h + b), gelu(h + b) once more if wanted (fc2's weight gradient
needs it, so the forward need not keep it), and db = sum dh: one pass over dg and h.

An implementation gets h, dg as [M, F] rows with last stride 1, bias [F] or None, the rest as in
the custom op; and returns contiguous tensors.
"""

import torch
from torch import Tensor

from eva_fast.ops.checks import as_shaped, check, dense_last, nothing, rows, statistics_dtype
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import direct
from eva_fast.ops.registry import define

__all__ = ["bias_gelu", "bias_gelu_backward", "bias_gelu_forward"]
_NAME = "bias_gelu"
KINDS = ("erf", "tanh", "quick")
QUICK_SLOPE = 1.702
APPROXIMATE = {"erf": "none", "tanh": "tanh"}
"""As PyTorch names them."""


def reference(h: Tensor, bias: Tensor | None, kind: str = "erf") -> Tensor:
    """`bias_gelu` in plain, differentiable PyTorch; 16-bit inputs compute in float32."""
    z = h.to(statistics_dtype(h))
    if bias is not None:
        z = z + bias.to(z.dtype)
    if kind != "quick":
        return torch.nn.functional.gelu(z, approximate=APPROXIMATE[kind]).to(h.dtype)
    return (z * torch.sigmoid(QUICK_SLOPE * z)).to(h.dtype)


def _forward(h: Tensor, bias: Tensor | None, kind: str) -> Tensor:
    return as_shaped(chosen(OP, h)(rows(h), bias, kind), h)


_forward_op = torch.library.custom_op("eva_fast::bias_gelu", mutates_args=())(_forward)


@_forward_op.register_fake
def _(h, bias, kind):
    return h.new_empty(h.shape)


def _backward(
    dg: Tensor, h: Tensor, bias: Tensor | None, kind: str, want_g: bool, want_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    implementation = chosen(BACKWARD, h)
    dh, g, dbias = implementation(rows(dg), rows(h), bias, kind, want_g, want_bias)
    return as_shaped(dh, h), as_shaped(g, h) if want_g else g, dbias


_backward_op = torch.library.custom_op("eva_fast::bias_gelu_backward", mutates_args=())(_backward)


@_backward_op.register_fake
def _(dg, h, bias, kind, want_g, want_bias):
    like = h if bias is None else bias
    return (
        h.new_empty(h.shape),
        h.new_empty(h.shape) if want_g else nothing(h),
        like.new_empty((h.shape[-1],)) if want_bias else nothing(like),
    )


def bias_gelu_forward(h: Tensor, bias: Tensor | None, kind: str = "erf") -> Tensor:
    """`bias_gelu` without the checks, for functions that bring their own backward."""
    return (_forward if direct(h) else _forward_op)(h, bias, kind)


def bias_gelu_backward(
    dg: Tensor,
    h: Tensor,
    bias: Tensor | None,
    kind: str = "erf",
    want_g: bool = False,
    want_bias: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """From dg, the gradient of g = gelu(h + b): (dh, g, dbias).

    dg, h: [..., F]. g is empty unless want_g. dbias [F], the column sums of dh accumulated in
    float32, has the dtype of the bias (of h where that is None) and is empty unless want_bias.
    """
    run = _backward if direct(dg) else _backward_op
    return run(dense_last(dg), h, bias, kind, want_g, want_bias)


def bias_gelu(h: Tensor, bias: Tensor | None, kind: str = "erf") -> Tensor:
    """gelu(h + bias).

    h: [..., F] float32, bfloat16 or float16, last stride 1. bias: [F], float32 or h's dtype, or
    None. kind: "erf" (exact), "tanh" (SigLIP's) or "quick" (CLIP's). Raises ValueError naming what
    does not fit.
    """
    if kind not in KINDS:
        raise ValueError(f"{_NAME}: unknown kind {kind!r}, choose from {KINDS}")
    if h.dim() < 2:
        raise ValueError(f"{_NAME}: h has shape {tuple(h.shape)}, expected at least 2 dimensions")
    check(_NAME, "h", h)
    if bias is not None:
        dtypes = (statistics_dtype(h), h.dtype)
        check(_NAME, "bias", bias, shape=(h.shape[-1],), dtypes=dtypes, like=h)
    return _forward_op(h, bias, kind)


def _forward_torch(h, bias, kind):
    return reference(h, bias, kind).contiguous()


def _backward_torch(dg, h, bias, kind, want_g, want_bias):
    z = h.to(statistics_dtype(h))
    if bias is not None:
        z = z + bias.to(z.dtype)
    wide = dg.to(z.dtype)
    if kind != "quick":
        dh = torch.ops.aten.gelu_backward(wide, z, approximate=APPROXIMATE[kind])
    else:
        gate = torch.sigmoid(QUICK_SLOPE * z)
        dh = wide * (gate * (1 + QUICK_SLOPE * z * (1 - gate)))
    like = h if bias is None else bias
    return (
        dh.to(h.dtype).contiguous(),
        _forward_torch(z, None, kind).to(h.dtype) if want_g else nothing(h),
        dh.sum(0).to(like.dtype) if want_bias else nothing(like),
    )


OP = define(_NAME, part="gelu", reference=reference, plain=_forward_torch)
bias_gelu.reference = reference  # type: ignore[attr-defined]
BACKWARD = define(
    f"{_NAME}_backward", part="gelu", kernels=2, plain=_backward_torch, backward_of=OP
)


def _setup_context(ctx, inputs, output):
    h, bias, ctx.kind = inputs
    ctx.save_for_backward(h, bias)


def _autograd(ctx, dg):
    h, bias = ctx.saved_tensors
    dh, _, dbias = bias_gelu_backward(dg, h, bias, ctx.kind, want_bias=bias is not None)
    return dh, dbias if bias is not None else None, None


_forward_op.register_autograd(_autograd, setup_context=_setup_context)
