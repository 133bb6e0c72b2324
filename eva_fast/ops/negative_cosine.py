"""EVA's loss: the negative mean cosine between predicted and target rows.

    loss = -1/M sum_m cos_m,  cos_m = p_m . t_m / (max(|p_m|, e) max(|t_m|, e)),  e = 1e-8

as torch.nn.CosineSimilarity has it (Fang et al. 2022, EVA, section 2.1). The forward keeps three
scalars a row (cos, 1/|p|, 1/|t|); the backward needs nothing else beside p and t:

    dp_m = -dloss/M (t_m / (|p||t|) - cos_m p_m / |p|^2)      second term only where |p| > e

The target is a constant. No rows: the loss is 0.

An implementation gets p, t as [M, C] with last stride 1 and returns (loss [], statistics [3, M]);
the backward gets dloss [] too and returns dp, contiguous.
"""

import torch
from torch import Tensor

from eva_fast.ops.checks import check, check_constant, statistics_dtype
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import differentiable, direct
from eva_fast.ops.registry import define

__all__ = ["negative_cosine", "negative_cosine_backward", "negative_cosine_forward"]
_NAME = "negative_cosine"
EPS = 1e-8


def reference(p: Tensor, t: Tensor) -> Tensor:
    """`negative_cosine` in plain, differentiable PyTorch; 16-bit inputs compute in float32."""
    compute = statistics_dtype(p)
    cosine = torch.nn.functional.cosine_similarity(p.to(compute), t.to(compute), dim=-1, eps=EPS)
    return -cosine.sum() / max(p.shape[0], 1)


def _forward(p: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return chosen(OP, p)(p, t)


_forward_op = torch.library.custom_op("eva_fast::negative_cosine", mutates_args=())(_forward)


@_forward_op.register_fake
def _(p, t):
    compute = statistics_dtype(p)
    return p.new_empty((), dtype=compute), p.new_empty((3, p.shape[0]), dtype=compute)


def _backward(dloss: Tensor, p: Tensor, t: Tensor, statistics: Tensor) -> Tensor:
    return chosen(BACKWARD, p)(dloss, p, t, statistics)


_backward_op = torch.library.custom_op("eva_fast::negative_cosine_backward", mutates_args=())(
    _backward
)


@_backward_op.register_fake
def _(dloss, p, t, statistics):
    return p.new_empty(p.shape)


def negative_cosine_forward(p: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, statistics float32 [3, M]: cosine, 1/|p|, 1/|t|), without the checks."""
    return (_forward if direct(p) else _forward_op)(p, t)


def negative_cosine_backward(dloss: Tensor, p: Tensor, t: Tensor, statistics: Tensor) -> Tensor:
    """dp [M, C] from the gradient of the scalar loss and the forward's statistics."""
    run = _backward if direct(p) else _backward_op
    return run(dloss, p, t, statistics)


def negative_cosine(p: Tensor, t: Tensor) -> Tensor:
    """-mean over rows of cos(p, t), a float32 scalar.

    p, t: [M, C] float32, bfloat16 or float16 (t may differ from p in dtype), last stride 1; t takes
    no gradient. Raises ValueError naming what does not fit.
    """
    check(_NAME, "p", p, shape=(None, None))
    check(_NAME, "t", t, shape=p.shape, like=p)
    check_constant(_NAME, "t", t)
    return _differentiable(p, t)[0]


def _forward_torch(p, t):
    compute = statistics_dtype(p)
    p, t = p.to(compute), t.to(compute)
    # a row's scalars in float64: their rounding errors would be shared by the whole row
    norm_p, norm_t = (v.norm(dim=-1).double().clamp_min(EPS) for v in (p, t))
    cosine = (p * t).sum(-1) / (norm_p * norm_t)
    loss = -cosine.sum() / max(p.shape[0], 1)
    return loss.to(compute), torch.stack((cosine, 1 / norm_p, 1 / norm_t)).to(compute)


def _backward_torch(dloss, p, t, statistics):
    compute = statistics.dtype
    cosine, inverse_p, inverse_t = statistics.double().unsqueeze(-1)
    factor = -dloss.double() / max(p.shape[0], 1)
    clamped = statistics[1].unsqueeze(-1) >= 1 / EPS
    along = (factor * cosine * inverse_p * inverse_p).masked_fill(clamped, 0).to(compute)
    across = (factor * inverse_p * inverse_t).to(compute)
    return (t * across - p * along).to(p.dtype)


OP = define(_NAME, part="head", kernels=2, reference=reference, plain=_forward_torch)
negative_cosine.reference = reference  # type: ignore[attr-defined]
BACKWARD = define(f"{_NAME}_backward", part="head", plain=_backward_torch, backward_of=OP)


def _setup_context(ctx, inputs, output):
    _, statistics = output
    ctx.save_for_backward(*inputs, statistics)
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)


def _autograd(ctx, dloss, _dstatistics):
    if dloss is None:
        return None, None
    return negative_cosine_backward(dloss, *ctx.saved_tensors), None


_forward_op.register_autograd(_autograd, setup_context=_setup_context)
_differentiable = differentiable(_forward_op, _forward, _setup_context, _autograd)
