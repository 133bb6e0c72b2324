"""A Linear and the cross-entropy over its outputs, in chunks of rows: no logits outlive their chunk.

    l_m = W x_m + b,  loss = 1/M sum_m (logsumexp(l_m) - l_m[t_m])
    G_m = f (softmax(l_m) - onehot(t_m));  dx = G W, dW = G^T x, db = sum_m G_m, times dloss

As BEiT predicts codes (Bao et al. 2022, section 2.3). Logits of 9,600 rows over 8,192 codes are 315 MB
in float32, and their gradient as much again. A chunk's logits become G where they lie, so that the
gradients cost two products beside the one of the forward, which computes them, and the backward
only scales: dx, dW and db are kept instead, as large as x, W and b. Sums over rows are in float32.
The factor f is 1/M; in 16 bits, where that would round all targets' share alike and leave float16's
range, it is 1 and the backward divides.

Implementations differ in what is done with the logits of a chunk, the products are the libraries':
one gets logits [R, C] in x's dtype, target int64 [R], statistics float32 [3, R] with last stride 1 to
write (log-sum-exp, the target's logit, the largest), and f; f = 0: the logits need not become G.
"""

import torch
from torch import Tensor

from eva_fast.ops.checks import check, check_constant, nothing, statistics_dtype
from eva_fast.ops.choose import chosen
from eva_fast.ops.linear import matmul, weight_gradient
from eva_fast.ops.registry import define

__all__ = ["linear_cross_entropy"]
_NAME = "linear_cross_entropy"
# Logits at a time: 512 rows of 8,192 on a CPU, near its cache; on a GPU as many rows as keep it busy.
CPU_CHUNK, GPU_CHUNK = 2**22, 2**24


def reference(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """The loss in plain, differentiable PyTorch; cross-entropy of 16-bit logits in float32."""
    logits = torch.nn.functional.linear(x, weight.to(x.dtype), bias.to(x.dtype))
    return torch.nn.functional.cross_entropy(logits.to(statistics_dtype(x)), target)


@torch.library.custom_op("eva_fast::linear_cross_entropy", mutates_args=())
def _op(
    x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, copy: Tensor | None, gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    used = weight.to(x.dtype) if copy is None else copy
    finish, bias, target = chosen(OP, x), bias.to(x.dtype), target.contiguous()
    wide = statistics_dtype(x)
    statistics = x.new_empty((3, len(x)), dtype=wide)
    dx, dweight, dbias = nothing(x), nothing(statistics), nothing(statistics)
    if gradients:
        dx = x.new_empty(x.shape)
        dweight, dbias = (x.new_zeros(t.shape, dtype=wide) for t in (weight, bias))
    factor = _factor(x.dtype, len(x)) if gradients else 0.0
    rows = max(1, (GPU_CHUNK if x.is_cuda else CPU_CHUNK) // len(weight))
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        logits = matmul(x[part], used.t(), bias)
        finish(logits, target[part], statistics[:, part], factor)
        if gradients:
            dx[part] = matmul(logits, used)
            dweight += weight_gradient(logits, x[part], wide)
            dbias += logits.sum(0, dtype=wide)
    total = (statistics[0].double() - statistics[1].double()).sum()
    loss = (total / max(len(x), 1)).to(wide)
    return loss, statistics, dx, dweight, dbias


@_op.register_fake
def _(x, weight, bias, target, copy, gradients):
    wide = statistics_dtype(x)
    loss, statistics = x.new_empty((), dtype=wide), x.new_empty((3, len(x)), dtype=wide)
    if not gradients:
        return loss, statistics, nothing(x), nothing(statistics), nothing(statistics)
    sums = (statistics.new_empty(t.shape) for t in (weight, bias))
    return loss, statistics, x.new_empty(x.shape), *sums


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, weight_copy: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(mean cross-entropy of W x + b against `target`, statistics [3, M] of its logits).

    x: [M, D] float32, bfloat16 or float16, last stride 1. weight: [C, D], bias: [C], float32 or x's
    dtype. weight_copy: the weight in x's dtype where the parameter itself is not; gradients go to the
    parameter. target: int64 [M] in [0, C), not checked on a GPU. Returns a float32 scalar, and without
    gradients each row's log-sum-exp, the target's logit and the largest. No rows: the loss is 0.
    Raises ValueError naming what does not fit.
    """
    check(_NAME, "x", x, shape=(None, None))
    check(_NAME, "weight", weight, shape=(None, x.shape[1]), like=x)
    check(_NAME, "bias", bias, shape=(len(weight),), like=x)
    check(_NAME, "target", target, shape=(len(x),), dtypes=(torch.int64,), like=x)
    if weight_copy is not None:
        check(_NAME, "weight_copy", weight_copy, shape=weight.shape, dtypes=(x.dtype,), like=x)
        check_constant(_NAME, "weight_copy", weight_copy)
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, bias))
    return _op(x, weight, bias, target, weight_copy, wanted)[:2]


def _factor(dtype: torch.dtype, rows: int) -> float:
    """What G is multiplied with before the products."""
    return 1.0 if dtype in (torch.float16, torch.bfloat16) else 1 / max(rows, 1)


def _rows_torch(logits, target, statistics, factor):
    wide = logits.to(statistics.dtype)
    chosen_ones = target[:, None]
    statistics[0] = wide.logsumexp(1)
    statistics[1] = wide.gather(1, chosen_ones)[:, 0]
    statistics[2] = wide.amax(1)
    if factor:
        wide = wide.softmax(1).scatter_add_(1, chosen_ones, -torch.ones_like(wide[:, :1]))
        logits.copy_(wide.mul_(factor))


def _flops(x, weight, bias, target, copy, gradients, **_) -> int:
    return (3 if gradients else 1) * 2 * len(x) * weight.numel()


OP = define(_NAME, part="head", kernels=7, reference=reference, plain=_rows_torch, flops=_flops)
linear_cross_entropy.reference = reference  # type: ignore[attr-defined]


def _setup_context(ctx, inputs, output):
    _, statistics, *gradients = output
    ctx.save_for_backward(*gradients)
    rows, ctx.dtypes = len(inputs[0]), (inputs[1].dtype, inputs[2].dtype)
    ctx.missing = 1 / max(rows, 1) / _factor(inputs[0].dtype, rows)
    ctx.mark_non_differentiable(statistics, *gradients)
    ctx.set_materialize_grads(False)


def _autograd(ctx, dloss, *_):
    if dloss is None:
        return None, None, None, None, None, None
    dx, dweight, dbias = ctx.saved_tensors
    scale = dloss * ctx.missing
    sums = ((sum * scale).to(dtype) for sum, dtype in zip((dweight, dbias), ctx.dtypes))
    return dx * scale, *sums, None, None, None


_op.register_autograd(_autograd, setup_context=_setup_context)
