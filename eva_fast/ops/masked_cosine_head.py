"""EVA's head and loss as one op: gather, LayerNorm, projection, negative mean cosine.

    y_m = LayerNorm(x[b, 1 + mask[b, k]]),  p_m = W y_m + b,  m = b K + k
    loss = -1/M sum_m p_m . t_m / (max(|p_m|, e) max(|t_m|, e)),  e = 1e-8

(Fang et al. 2022, EVA, section 2.1.) Without a mask row m is x[m], for rows that were gathered
before, as after the student's trimmed last block. The forward keeps three scalars a row, cos, 1/|p|
and 1/|t|, beside its inputs; fused in Triton it never writes gathered, normalised or predicted rows.
The backward rebuilds them: dp as in `negative_cosine`, the rest as in `layer_norm_project`. No rows:
the loss is 0.

Triton has two implementations with the same numbers: "fused" as above, and "composed" from
a gather+norm kernel, the library's GEMM and a row kernel. On a GPU a trial tells which is faster for
a shape; plain PyTorch is always composed.

An implementation gets x [B, T, D], or [M, D] where mask is None, and target [M, C] with last stride
1, mask int32 [B, K] contiguous, ln_w, ln_b [D], W [C, D] contiguous and b [C] in x's dtype; and returns
(loss [], statistics [3, M]). The backward gets dloss [] and the statistics, and returns
(dx, dln_w, dln_b, dW, db).
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eva_fast.ops.checks import check, check_constant, statistics_dtype
from eva_fast.ops.choose import chosen
from eva_fast.ops.layer_norm_project import (
    check_projection,
    contiguous,
    normalised,
    product_flops,
    project_backward,
)
from eva_fast.ops.layer_norm_project import reference as _project
from eva_fast.ops.negative_cosine import (
    negative_cosine_backward,
    negative_cosine_forward,
)
from eva_fast.ops.negative_cosine import reference as _loss
from eva_fast.ops.registry import Case, Runs, Trial, define

__all__ = ["masked_cosine_head", "masked_cosine_head_backward", "masked_cosine_head_forward"]
_NAME = "masked_cosine_head"
# Above this many multiply-adds the GEMM outweighs the memory traffic that fusing saves, and the
# library's GEMM is the faster one: the estimate where nothing is measured.
COMPOSED_FROM = 2**35


def reference(
    x: Tensor,
    mask: Tensor | None,
    ln_w: Tensor,
    ln_b: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    eps: float,
) -> Tensor:
    """`masked_cosine_head` in plain, differentiable PyTorch; norm and loss compute in float32."""
    return _loss(_project(x, mask, ln_w, ln_b, weight, bias, eps), target)


@torch.library.custom_op("eva_fast::masked_cosine_head", mutates_args=())
def _forward_op(
    x: Tensor,
    mask: Tensor | None,
    ln_w: Tensor,
    ln_b: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    weight, bias = weight.to(x.dtype).contiguous(), bias.to(x.dtype)
    sizes = (target.shape[0], x.shape[-1], weight.shape[0])
    return chosen(OP, x, sizes)(x, contiguous(mask), ln_w, ln_b, weight, bias, target, eps)


@_forward_op.register_fake
def _(x, mask, ln_w, ln_b, weight, bias, target, eps):
    compute = statistics_dtype(x)
    return x.new_empty((), dtype=compute), x.new_empty((3, target.shape[0]), dtype=compute)


@torch.library.custom_op("eva_fast::masked_cosine_head_backward", mutates_args=())
def _backward_op(
    dloss: Tensor,
    x: Tensor,
    mask: Tensor | None,
    ln_w: Tensor,
    ln_b: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    statistics: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    implementation = chosen(BACKWARD, x)
    dx, dln_w, dln_b, dweight, dbias = implementation(
        dloss, x, contiguous(mask), ln_w, ln_b, weight.to(x.dtype).contiguous(),
        bias.to(x.dtype), target, statistics, eps,
    )  # fmt: skip
    return dx, dln_w, dln_b, dweight.to(weight.dtype), dbias.to(bias.dtype)


@_backward_op.register_fake
def _(dloss, x, mask, ln_w, ln_b, weight, bias, target, statistics, eps):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, ln_w, ln_b, weight, bias))


def masked_cosine_head_forward(
    x: Tensor,
    mask: Tensor | None,
    ln_w: Tensor,
    ln_b: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """(loss, statistics float32 [3, M]: cosine, 1/|p|, 1/|t|), without the checks."""
    return _forward_op(x, mask, ln_w, ln_b, weight, bias, target, eps)


def masked_cosine_head_backward(
    dloss: Tensor,
    x: Tensor,
    mask: Tensor | None,
    ln_w: Tensor,
    ln_b: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    statistics: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dx as x, dln_w, dln_b, dweight, dbias) from the forward's inputs and statistics."""
    return _backward_op(dloss, x, mask, ln_w, ln_b, weight, bias, target, statistics, eps)


def masked_cosine_head(
    x: Tensor,
    mask: Tensor | None,
    ln_w: Tensor,
    ln_b: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    eps: float = 1e-6,
) -> Tensor:
    """-mean over the masked patches of cos(W LayerNorm(x) + b, target), a float32 scalar.

    x: [B, T, D] float32, bfloat16 or float16, last stride 1, CLS in row 0. mask: int32 [B, K], each
    row ascending in [0, T - 1); or x: [M, D], the masked rows alone, and mask None. ln_w, ln_b: [D],
    weight: [C, D], bias: [C], float32 or x's dtype. target: [M, C], M = B K, any of these dtypes, no
    gradient. Gradients for all but mask and target. Raises ValueError naming what does not fit.
    """
    check_projection(_NAME, x, mask, ln_w, ln_b, weight, bias)
    rows = x.shape[0] if mask is None else mask.numel()
    check(_NAME, "target", target, shape=(rows, weight.shape[0]), like=x)
    check_constant(_NAME, "target", target)
    return _forward_op(x, mask, ln_w, ln_b, weight, bias, target, eps)[0]


def _forward_torch(x, mask, ln_w, ln_b, weight, bias, target, eps):
    y = normalised(x, mask, ln_w, ln_b, eps)[1]
    return negative_cosine_forward(torch.addmm(bias, y, weight.t()), target)


def _backward_torch(dloss, x, mask, ln_w, ln_b, weight, bias, target, statistics, eps):
    rows, y, mean, rstd = normalised(x, mask, ln_w, ln_b, eps)
    p = torch.addmm(bias, y, weight.t())
    dp = negative_cosine_backward(dloss, p, target, statistics)
    return project_backward(dp, rows, y, x, mask, ln_w, ln_b, weight, mean, rstd)


def _backward_flops(dloss, *arguments, **_) -> int:
    return 3 * product_flops(*arguments)  # gradients of rows and weight; the predictions once more


def _label(case: Case) -> str:
    rows, width, predict = case.sizes
    dtype = str(case.dtype).removeprefix("torch.")
    return f"{_NAME}: {rows} rows, {width} to {predict}, {dtype}"


def _trial_runs(case: Case, names: Sequence[str]) -> Runs:
    """The forward on rows that were gathered before."""
    rows, width, predict = case.sizes
    options: dict[str, Any] = {"dtype": case.dtype, "device": case.device}
    x, target = torch.randn(rows, width, **options), torch.randn(rows, predict, **options)
    vectors, bias = torch.randn(2, width, **options), torch.randn(predict, **options)
    weight = torch.randn(predict, width, **options)
    arguments = (x, None, *vectors, weight, bias, target, 1e-6)
    return {name: functools.partial(OP.function(name), *arguments) for name in names}


def _estimate(case: Case) -> str:
    if not case.sizes:
        return "composed"
    rows, width, predict = case.sizes
    # full fp32 products do not run on the tensor cores in Triton: leave them to the library
    slow = case.dtype == torch.float32 and case.device.type == "cuda"
    return "composed" if slow or rows * width * predict > COMPOSED_FROM else "fused"


OP = define(
    _NAME,
    part="head",
    reference=reference,
    plain=_forward_torch,
    flops=product_flops,
    trial=Trial(device_type="cuda", label=_label, runs=_trial_runs),
    estimate=_estimate,
    families=(),
)
for _name in ("composed", "fused"):
    OP.add(_name, family="triton", home=f"eva_fast.kernels.{_NAME}")
masked_cosine_head.reference = reference  # type: ignore[attr-defined]
BACKWARD = define(
    f"{_NAME}_backward", part="head", plain=_backward_torch, flops=_backward_flops, backward_of=OP
)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.eps = inputs
    _, statistics = output
    ctx.save_for_backward(*tensors, statistics)
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)


def _autograd(ctx, dloss, _dstatistics):
    if dloss is None:
        return (None,) * 8
    dx, dln_w, dln_b, dweight, dbias = _backward_op(dloss, *ctx.saved_tensors, ctx.eps)
    return dx, None, dln_w, dln_b, dweight, dbias, None, None


_forward_op.register_autograd(_autograd, setup_context=_setup_context)
