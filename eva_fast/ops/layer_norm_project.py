"""LayerNorm and a Linear as one op, on all rows or on the rows of the masked patches.

    xhat = (x - mean) * rstd,  y = xhat * ln_w + ln_b,  out = y W^T + b

mean and rstd over the last dimension, rstd = 1/sqrt(var + eps) (Ba et al. 2016). With a mask, row
b K + k of the op is x[b, 1 + mask[b, k]] of x [B, T, D] with the CLS token in row 0. The forward
keeps nothing but its inputs and (in Triton) never writes y; the backward rebuilds y:

    db = sum dout,  dW = dout^T y,  dy = dout W,  dln_w = sum dy xhat,  dln_b = sum dy
    dx = rstd (g - mean(g) - xhat mean(g xhat)),  g = dy ln_w;  zero in rows the mask does not name

y is rounded to x's dtype before the product, as a LayerNorm's output would be.

An implementation gets x [M, D] (mask None) or [B, T, D] with last stride 1, mask int32 [B, K]
contiguous or None, ln_w, ln_b [D], W [C, D] contiguous and b [C] in x's dtype; and returns
contiguous tensors. The backward returns (dx, dln_w, dln_b, dW, db).
"""

import torch
from torch import Tensor

from eva_fast.ops.add_layer_norm import add_layer_norm_backward, add_layer_norm_forward
from eva_fast.ops.checks import check, dense_last, statistics_dtype
from eva_fast.ops.choose import chosen
from eva_fast.ops.masked_gather import masked_gather_backward, masked_gather_forward
from eva_fast.ops.registry import define

__all__ = ["layer_norm_project"]
_NAME = "layer_norm_project"


def gathered(x: Tensor, mask: Tensor | None) -> Tensor:
    """Rows 1 + mask of x [B, T, D] as [B K, D], differentiable; x itself without a mask."""
    if mask is None:
        return x
    index = (mask.long() + 1)[:, :, None].expand(-1, -1, x.shape[-1])
    return x.gather(1, index).flatten(0, 1)


def reference(
    x: Tensor,
    mask: Tensor | None,
    ln_w: Tensor,
    ln_b: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """`layer_norm_project` in plain, differentiable PyTorch; the norm computes in float32."""
    compute = statistics_dtype(x)
    rows = gathered(x, mask).to(compute)
    norm = torch.nn.functional.layer_norm
    y = norm(rows, (x.shape[-1],), ln_w.to(compute), ln_b.to(compute), eps)
    return torch.nn.functional.linear(y.to(x.dtype), weight.to(x.dtype), bias.to(x.dtype))


@torch.library.custom_op("eva_fast::layer_norm_project", mutates_args=())
def _forward_op(
    x: Tensor,
    mask: Tensor | None,
    ln_w: Tensor,
    ln_b: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    return chosen(OP, x)(
        x, contiguous(mask), ln_w, ln_b, weight.to(x.dtype).contiguous(), bias.to(x.dtype), eps
    )


@_forward_op.register_fake
def _(x, mask, ln_w, ln_b, weight, bias, eps):
    rows = x.shape[0] if mask is None else mask.shape[0] * mask.shape[1]
    return x.new_empty((rows, weight.shape[0]))


@torch.library.custom_op("eva_fast::layer_norm_project_backward", mutates_args=())
def _backward_op(
    dout: Tensor,
    x: Tensor,
    mask: Tensor | None,
    ln_w: Tensor,
    ln_b: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, dln_w, dln_b, dweight, dbias = chosen(BACKWARD, dout)(
        dout, x, contiguous(mask), ln_w, ln_b, weight.to(x.dtype).contiguous(), eps
    )
    return dx, dln_w, dln_b, dweight.to(weight.dtype), dbias.to(bias.dtype)


@_backward_op.register_fake
def _(dout, x, mask, ln_w, ln_b, weight, bias, eps):
    like = (x, ln_w, ln_b, weight, bias)
    return tuple(tensor.new_empty(tensor.shape) for tensor in like)


def contiguous(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous()


def layer_norm_project(
    x: Tensor,
    mask: Tensor | None,
    ln_w: Tensor,
    ln_b: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-6,
) -> Tensor:
    """LayerNorm(rows of x) W^T + b as [M, C].

    x: [M, D] with mask None, or [B, T, D] with mask int32 [B, K] (each row ascending in [0, T - 1),
    M = B K); float32, bfloat16 or float16, last stride 1. ln_w, ln_b: [D], float32 or x's dtype.
    weight: [C, D], bias: [C], float32 or x's dtype; the product runs in x's dtype with float32
    sums. Gradients for all but the mask. Raises ValueError naming what does not fit.
    """
    check_projection(_NAME, x, mask, ln_w, ln_b, weight, bias)
    return _forward_op(x, mask, ln_w, ln_b, weight, bias, eps)


def check_projection(op, x, mask, ln_w, ln_b, weight, bias) -> None:
    """Raises ValueError unless the arguments of `layer_norm_project` fit."""
    check(op, "x", x, shape=(None,) * (2 if mask is None else 3))
    if mask is not None:
        check(op, "mask", mask, shape=(x.shape[0], None), dtypes=(torch.int32,), like=x)
    width, allowed = x.shape[-1], (statistics_dtype(x), x.dtype)
    check(op, "ln_w", ln_w, shape=(width,), dtypes=allowed, like=x)
    check(op, "ln_b", ln_b, shape=(width,), dtypes=(ln_w.dtype,), like=x)
    check(op, "weight", weight, shape=(None, width), dtypes=allowed, like=x)
    check(op, "bias", bias, shape=(weight.shape[0],), dtypes=allowed, like=x)


def _forward_torch(x, mask, ln_w, ln_b, weight, bias, eps):
    y = normalised(x, mask, ln_w, ln_b, eps)[1]
    return torch.addmm(bias, y, weight.t())


def normalised(x, mask, ln_w, ln_b, eps):
    """(gathered rows, LayerNorm of them, mean, rstd) through the row ops."""
    rows = x if mask is None else masked_gather_forward(x, mask)
    return rows, *add_layer_norm_forward(rows, None, None, None, ln_w, ln_b, eps)[1:]


def _backward_torch(dout, x, mask, ln_w, ln_b, weight, eps):
    rows, y, mean, rstd = normalised(x, mask, ln_w, ln_b, eps)
    return project_backward(dout, rows, y, x, mask, ln_w, ln_b, weight, mean, rstd)


def project_backward(dout, rows, y, x, mask, ln_w, ln_b, weight, mean, rstd):
    """(dx, dln_w, dln_b, dweight, dbias) from dout [M, C] and what `normalised` returned."""
    dy = dout @ weight
    drows, _, _, dln_w, dln_b, _ = add_layer_norm_backward(dy, None, rows, mean, rstd, ln_w, ln_b)
    dx = drows if mask is None else masked_gather_backward(drows, mask, x.shape[1])
    dbias = dout.sum(0, dtype=statistics_dtype(dout))
    return dx, dln_w, dln_b, dout.t() @ y, dbias


def product_flops(x, mask, ln_w, ln_b, weight, *_, **__) -> int:
    """FLOPs of the Linear, from the operator's arguments."""
    rows = x.shape[:-1].numel() if mask is None else mask.numel()
    return 2 * rows * weight.shape[0] * weight.shape[1]


def _backward_flops(dout, *arguments, **_) -> int:
    return 2 * product_flops(*arguments)  # gradients of the rows and of the weight


OP = define(_NAME, part="head", reference=reference, plain=_forward_torch, flops=product_flops)
layer_norm_project.reference = reference  # type: ignore[attr-defined]
BACKWARD = define(
    f"{_NAME}_backward", part="head", plain=_backward_torch, flops=_backward_flops, backward_of=OP
)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx, dout):
    dx, dln_w, dln_b, dweight, dbias = _backward_op(dense_last(dout), *ctx.saved_tensors, ctx.eps)
    return dx, None, dln_w, dln_b, dweight, dbias, None


_forward_op.register_autograd(_autograd, setup_context=_setup_context)
