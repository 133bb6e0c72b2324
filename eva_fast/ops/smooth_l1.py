"""Feature Distillation's loss: smooth L1 of a prediction and a whitened target.

    y_m = (t_m - mean t_m) / sqrt(var t_m + e),  d = p - y,  e = 1e-5
    loss = mean over rows and channels of  d^2 / (2 b) where |d| < b, |d| - b/2 elsewhere

(Wei et al. 2022, "Contrastive learning rivals masked image modeling in fine-tuning via feature
distillation", and its code, where b = 2.) The whitening is a LayerNorm without weights of the raw
features of a token: nothing is measured beforehand, and the normalised target is never written. The
forward keeps three scalars a row (its loss, mean t, 1/deviation); the backward needs nothing else
beside p and t:

    dp = dloss / (M C) clamp(d / b, -1, 1)

The target is a constant. No rows: the loss is 0.

An implementation gets p, t as [M, C] with last stride 1 and returns (loss [], statistics [3, M]);
the backward gets dloss [] too and returns dp, contiguous.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from eva_fast.ops.checks import check, check_constant, rows, statistics_dtype
from eva_fast.ops.choose import chosen
from eva_fast.ops.registry import define

__all__ = ["smooth_l1", "smooth_l1_backward", "smooth_l1_forward"]
_NAME = "smooth_l1"
EPS = 1e-5


def reference(p: Tensor, t: Tensor, beta: float = 2.0) -> Tensor:
    """`smooth_l1` in plain, differentiable PyTorch; 16-bit inputs compute in float32."""
    compute = statistics_dtype(p)
    y = F.layer_norm(t.to(compute), t.shape[-1:], eps=EPS)
    total = F.smooth_l1_loss(p.to(compute), y, beta=beta, reduction="sum")
    return total / max(p.numel(), 1)


@torch.library.custom_op("eva_fast::smooth_l1", mutates_args=())
def _forward_op(p: Tensor, t: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    return chosen(OP, p)(p, t, beta)


@_forward_op.register_fake
def _(p, t, beta):
    compute = statistics_dtype(p)
    return p.new_empty((), dtype=compute), p.new_empty((3, p.shape[0]), dtype=compute)


@torch.library.custom_op("eva_fast::smooth_l1_backward", mutates_args=())
def _backward_op(dloss: Tensor, p: Tensor, t: Tensor, statistics: Tensor, beta: float) -> Tensor:
    return chosen(BACKWARD, p)(dloss, p, t, statistics, beta)


@_backward_op.register_fake
def _(dloss, p, t, statistics, beta):
    return p.new_empty(p.shape)


def smooth_l1_forward(p: Tensor, t: Tensor, beta: float = 2.0) -> tuple[Tensor, Tensor]:
    """(loss, statistics float32 [3, M]: loss of the row, mean t, 1/deviation), without the checks."""
    return _forward_op(p, t, beta)


def smooth_l1_backward(
    dloss: Tensor, p: Tensor, t: Tensor, statistics: Tensor, beta: float = 2.0
) -> Tensor:
    """dp [M, C] from the gradient of the scalar loss and the forward's statistics."""
    return _backward_op(dloss, p, t, statistics, beta)


def smooth_l1(p: Tensor, t: Tensor, beta: float = 2.0) -> Tensor:
    """Mean smooth L1 of p and the whitened rows of t, a float32 scalar.

    p, t: [..., C] float32, bfloat16 or float16 (t may differ from p in dtype), last stride 1; t takes
    no gradient. beta: positive. Raises ValueError naming what does not fit.
    """
    check(_NAME, "p", p)
    if p.dim() == 0:
        raise ValueError(f"{_NAME}: p has no dimension, expected (..., channels)")
    check(_NAME, "t", t, shape=p.shape, like=p)
    check_constant(_NAME, "t", t)
    if not beta > 0:
        raise ValueError(f"{_NAME}: beta must be positive, got {beta}")
    return _forward_op(rows(p), rows(t), float(beta))[0]


def _forward_torch(p, t, beta):
    compute = statistics_dtype(p)
    y, mean, rstd = torch.native_layer_norm(t.to(compute), t.shape[-1:], None, None, EPS)
    by_row = F.smooth_l1_loss(p.to(compute), y, beta=beta, reduction="none").mean(-1)
    loss = by_row.double().sum() / max(p.shape[0], 1)
    return loss.to(compute), torch.stack((by_row, mean[:, 0], rstd[:, 0]))


def _backward_torch(dloss, p, t, statistics, beta):
    compute = statistics.dtype
    _, mean, rstd = statistics[:, :, None]
    off = p.to(compute) - (t.to(compute) - mean) * rstd
    return (off.div_(beta).clamp_(-1, 1) * (dloss.to(compute) / max(p.numel(), 1))).to(p.dtype)


OP = define(_NAME, part="head", kernels=2, reference=reference, plain=_forward_torch)
smooth_l1.reference = reference  # type: ignore[attr-defined]
BACKWARD = define(f"{_NAME}_backward", part="head", plain=_backward_torch, backward_of=OP)


def _setup_context(ctx, inputs, output):
    p, t, ctx.beta = inputs
    ctx.save_for_backward(p, t, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _autograd(ctx, dloss, _dstatistics):
    if dloss is None:
        return None, None, None
    return smooth_l1_backward(dloss, *ctx.saved_tensors, ctx.beta), None, None


_forward_op.register_autograd(_autograd, setup_context=_setup_context)
