"""Residual add, drop-path scale and LayerNorm as one op.

    x' = x + s (branch + c)          s: one factor per sample (drop-path), c: the branch's bias
    y  = (x' - mean) * rstd * w + b  mean, variance over the last dimension, rstd = 1/sqrt(var+eps)

Pre-norm blocks (Ba et al. 2016, Layer Normalization; Xiong et al. 2020) add a branch and normalise
the sum for the next one, so both are one read of x and branch and one write of x' and y. c is here
and not in the branch's last GEMM because its gradient is a column sum of the residual gradient,
which the backward has in registers:

    xhat = (x' - mean) * rstd,  g = dy * w
    dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) + dresidual
    dbranch = s dx,  dc = sum dbranch,  dw = sum dy * xhat,  db = sum dy

The backward can also write y once more (for the weight gradient of the GEMM that followed), so y
need not be kept. y and the statistics are those of x' as stored, hence y comes back bit for bit.

An implementation gets rows: x, branch, dy, dresidual, x' contiguous in any one shape [..., D], or all
as [M, D] with last stride 1; scale [B] with M % B == 0, the rest as in the custom op. It returns
contiguous tensors, in the shape it got.
"""

import torch
from torch import Tensor

from eva_fast.ops.checks import (
    as_shaped,
    check,
    check_constant,
    dense_rows,
    nothing,
    statistics_dtype,
)
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import direct
from eva_fast.ops.registry import define

__all__ = ["add_layer_norm", "add_layer_norm_backward", "add_layer_norm_forward"]
_NAME = "add_layer_norm"


def reference(
    x: Tensor,
    branch: Tensor | None,
    branch_bias: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`add_layer_norm` in plain, differentiable PyTorch; 16-bit inputs compute in float32."""
    compute = statistics_dtype(x)
    total = x
    if branch is not None:
        update = branch.to(compute)
        if branch_bias is not None:
            update = update + branch_bias.to(compute)
        if scale is not None:
            shape = (scale.shape[0], -1, x.shape[-1])
            update = (update.reshape(shape) * scale.to(compute)[:, None, None]).view(x.shape)
        total = (x.to(compute) + update).to(x.dtype)
    wide = total.to(compute)
    mean = wide.mean(-1, keepdim=True)
    rstd = torch.rsqrt((wide - mean).square().mean(-1, keepdim=True) + eps)
    y = ((wide - mean) * rstd * weight.to(compute) + bias.to(compute)).to(x.dtype)
    return total, y, mean.detach().flatten(), rstd.detach().flatten()


def _forward(
    x: Tensor,
    branch: Tensor | None,
    branch_bias: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total, y, mean, rstd = chosen(OP, x)(
        *dense_rows(x, branch), branch_bias, scale, weight, bias, eps
    )
    return as_shaped(total, x) if branch is not None else total, as_shaped(y, x), mean, rstd


_forward_op = torch.library.custom_op("eva_fast::add_layer_norm", mutates_args=())(_forward)


@_forward_op.register_fake
def _(x, branch, branch_bias, scale, weight, bias, eps):
    total = x.new_empty(x.shape) if branch is not None else nothing(x)
    statistics = x.new_empty((x.shape[:-1].numel(),), dtype=statistics_dtype(x))
    return total, x.new_empty(x.shape), statistics, torch.empty_like(statistics)


def _backward(
    dy: Tensor,
    dresidual: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    want_y: bool,
    want_branch_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, dbranch, y, *sums = chosen(BACKWARD, dy)(
        *dense_rows(dy, dresidual, total),
        *(mean, rstd, weight, bias, scale, want_y, want_branch_bias),
    )
    dbranch = as_shaped(dbranch, dy) if scale is not None else dbranch
    return as_shaped(dx, dy), dbranch, as_shaped(y, dy) if want_y else y, *sums


_backward_op = torch.library.custom_op("eva_fast::add_layer_norm_backward", mutates_args=())(
    _backward
)


@_backward_op.register_fake
def _(dy, dresidual, total, mean, rstd, weight, bias, scale, want_y, want_branch_bias):
    dx = dy.new_empty(dy.shape)
    return (
        dx,
        torch.empty_like(dx) if scale is not None else nothing(dx),
        torch.empty_like(dx) if want_y else nothing(dx),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        torch.empty_like(bias, memory_format=torch.contiguous_format),
        weight.new_empty(weight.shape) if want_branch_bias else nothing(weight),
    )


def add_layer_norm_forward(
    x: Tensor,
    branch: Tensor | None,
    branch_bias: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`add_layer_norm` without the checks, for functions that bring their own backward."""
    run = _forward if direct(x) else _forward_op
    total, y, mean, rstd = run(x, branch, branch_bias, scale, weight, bias, eps)
    return total if branch is not None else x, y, mean, rstd


def add_layer_norm_backward(
    dy: Tensor,
    dresidual: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    want_y: bool = False,
    want_branch_bias: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `add_layer_norm` from those of y (dy) and of x' (dresidual, None for zero).

    total: x' [..., D]; mean, rstd: float32 [M] of the forward; scale: float32 [B] or None.
    Returns (dx, dbranch, y, dweight, dbias, dbranch_bias): dbranch is dx itself where scale is
    None; y is empty unless want_y; dbranch_bias [D], in the dtype of `weight` like dweight, is
    empty unless want_branch_bias. Sums over rows accumulate in float32.
    """
    run = _backward if direct(dy) else _backward_op
    dx, dbranch, *rest = run(
        dy, dresidual, total, mean, rstd, weight, bias, scale, want_y, want_branch_bias
    )
    return dx, dbranch if scale is not None else dx, *rest


def add_layer_norm(
    x: Tensor,
    branch: Tensor | None,
    branch_bias: Tensor | None,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x' = x + scale * (branch + branch_bias) and y = LayerNorm(x').

    x, branch: [..., D], one dtype (float32, bfloat16, float16), last stride 1; branch None: x' is
    x. branch_bias [D] or None. scale: float32 [B], a factor per sample of M/B rows, or None.
    weight, bias: [D], float32 or x's dtype. Returns (x', y, mean, rstd); the statistics are
    float32 [M] and carry no gradient. Raises ValueError naming what does not fit.
    """
    _check(x, branch, branch_bias, scale, weight, bias)
    return add_layer_norm_forward(x, branch, branch_bias, scale, weight, bias, eps)


def _check(x, branch, branch_bias, scale, weight, bias) -> None:
    if x.dim() < 2:
        raise ValueError(f"{_NAME}: x has shape {tuple(x.shape)}, expected at least 2 dimensions")
    check(_NAME, "x", x)
    width, compute = x.shape[-1], (statistics_dtype(x), x.dtype)
    check(_NAME, "weight", weight, shape=(width,), dtypes=compute, like=x)
    check(_NAME, "bias", bias, shape=(width,), dtypes=(weight.dtype,), like=x)
    if branch is None:
        if branch_bias is not None or scale is not None:
            raise ValueError(f"{_NAME}: branch_bias and scale need a branch, which is None")
        return
    check(_NAME, "branch", branch, shape=x.shape, dtypes=(x.dtype,), like=x)
    if branch_bias is not None:
        check(_NAME, "branch_bias", branch_bias, shape=(width,), dtypes=compute, like=x)
    if scale is not None:
        check(_NAME, "scale", scale, shape=(None,), dtypes=(statistics_dtype(x),), like=x)
        check_constant(_NAME, "scale", scale)
        if scale.shape[0] == 0 or x.shape[:-1].numel() % scale.shape[0]:
            raise ValueError(
                f"{_NAME}: scale has shape {tuple(scale.shape)}, expected a number of samples that "
                f"divides the {x.shape[:-1].numel()} rows of x"
            )


def _forward_torch(x, branch, branch_bias, scale, weight, bias, eps):
    compute = statistics_dtype(x)
    total = x
    if branch is not None:
        update = branch.to(compute)
        if branch_bias is not None:
            update = update + branch_bias.to(compute)
        if scale is not None:
            update = _by_sample(update, scale)
        total = (x.to(compute) + update).to(x.dtype)
    y, mean, rstd = torch.native_layer_norm(
        total.to(compute), weight.shape, weight.to(compute), bias.to(compute), eps
    )
    total = total if branch is not None else nothing(x)
    return total, y.to(x.dtype), mean.view(-1), rstd.view(-1)


def _backward_torch(
    dy, dresidual, total, mean, rstd, weight, bias, scale, want_y, want_branch_bias
):
    compute = statistics_dtype(dy)
    wide, wide_weight, wide_bias = (t.to(compute) for t in (total, weight, bias))
    mean, rstd = (t.view(*dy.shape[:-1], 1) for t in (mean, rstd))
    dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dy.to(compute), wide, weight.shape, mean, rstd, wide_weight, wide_bias, [True, True, True]
    )
    if dresidual is not None:
        dx += dresidual
    dbranch = dx if scale is None else _by_sample(dx, scale)
    y = nothing(dy)
    if want_y:
        xhat = torch.sub(wide, mean).mul_(rstd)
        y = torch.addcmul(wide_bias, xhat, wide_weight).to(dy.dtype)
    return (
        dx.to(dy.dtype),
        dbranch.to(dy.dtype) if scale is not None else nothing(dy),
        y,
        dweight.to(weight.dtype),
        dbias.to(bias.dtype),
        dbranch.view(-1, dy.shape[-1]).sum(0).to(weight.dtype)
        if want_branch_bias
        else nothing(weight),
    )


def _by_sample(rows: Tensor, scale: Tensor) -> Tensor:
    """Rows [..., D], those of each of B samples multiplied by its factor of scale [B]."""
    samples = rows.view(scale.shape[0], -1, rows.shape[-1])
    return (samples * scale[:, None, None]).view(rows.shape)


OP = define(_NAME, part="norm", reference=reference, plain=_forward_torch)
add_layer_norm.reference = reference  # type: ignore[attr-defined]
BACKWARD = define(
    f"{_NAME}_backward", part="norm", kernels=2, plain=_backward_torch, backward_of=OP
)


def _setup_context(ctx, inputs, output):
    x, branch, branch_bias, scale, weight, bias, _ = inputs
    total, _, mean, rstd = output
    ctx.save_for_backward(total if branch is not None else x, mean, rstd, weight, bias, scale)
    ctx.branch_bias_dtype = branch_bias.dtype if branch_bias is not None else None
    ctx.has_branch = branch is not None
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


def _autograd(ctx, dtotal, dy, _dmean, _drstd):
    total, mean, rstd, weight, bias, scale = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(total)
    dresidual = dtotal if ctx.has_branch else None
    dx, dbranch, _, dweight, dbias, dbranch_bias = add_layer_norm_backward(
        dy, dresidual, total, mean, rstd, weight, bias, scale, False, bool(ctx.branch_bias_dtype)
    )
    if ctx.branch_bias_dtype is not None:
        dbranch_bias = dbranch_bias.to(ctx.branch_bias_dtype)
    else:
        dbranch_bias = None
    return dx, dbranch if ctx.has_branch else None, dbranch_bias, None, dweight, dbias, None


_forward_op.register_autograd(_autograd, setup_context=_setup_context)
