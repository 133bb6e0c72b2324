"""EVA's head and loss as one op: gather, LayerNorm, projection, negative mean cosine.

    y_m = LayerNorm(x[b, 1 + mask[b, k]]),  p_m = W y_m + b,  m = b K + k
    loss = -1/M sum_m p_m . t_m / (max(|p_m|, e) max(|t_m|, e)),  e = 1e-8

(Fang et al. 2022, EVA, section 2.1.) Without a mask row m is x[m], for rows that were gathered
before, as after the student's trimmed last block. The forward keeps three scalars a row, cos, 1/|p|
and 1/|t|, beside its inputs; fused in Triton it never writes gathered, normalised or predicted rows.
The backward rebuilds them: dp as in `negative_cosine`, the rest as in `layer_norm_project`. No rows:
the loss is 0.

Two variants with the same numbers: "fused" as above, and "composed" from a gather+norm kernel, the
library's GEMM and a row kernel. `choose_variant` picks; plain PyTorch is always composed.

An implementation gets x [B, T, D], or [M, D] where mask is None, and target [M, C] with last stride
1, mask int32 [B, K] contiguous, ln_w, ln_b [D], W [C, D] contiguous and b [C] in x's dtype; and returns
(loss [], statistics [3, M]). The backward gets dloss [] and the statistics, and returns
(dx, dln_w, dln_b, dW, db).
"""

import functools
import logging

import torch
from torch import Tensor

from eva_fast.ops import dispatch
from eva_fast.ops.checks import check, check_constant, statistics_dtype
from eva_fast.ops.layer_norm_project import (
    check_projection,
    contiguous,
    normalised,
    project_backward,
)
from eva_fast.ops.layer_norm_project import reference as _project
from eva_fast.ops.measure import Runs, in_turns, measured_choice
from eva_fast.ops.negative_cosine import (
    negative_cosine_backward,
    negative_cosine_forward,
)
from eva_fast.ops.negative_cosine import reference as _loss

_OP = "masked_cosine_head"
VARIANTS = ("fused", "composed")
# Above this many multiply-adds the GEMM outweighs the memory traffic that fusing saves, and the
# library's GEMM is the faster one: the estimate where nothing is measured.
COMPOSED_FROM = 2**35

logger = logging.getLogger(__name__)
_variants: dict[tuple[int, int, int, torch.dtype], str] = {}
_forced: str | None = None


def set_variant(
    variant: str, shape: tuple[int, int, int] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Fixes the variant that Triton runs: "fused", "composed", or "auto" to forget all choices.

    With shape (rows M, width D, predict C) and dtype the choice holds for these alone. Raises
    ValueError for an unknown variant.
    """
    global _forced
    if variant not in ("auto", *VARIANTS):
        raise ValueError(f"unknown variant {variant!r}: choose from {('auto', *VARIANTS)}")
    if variant == "auto":
        _forced = None
        _variants.clear()
    elif shape is not None and dtype is not None:
        key = (*shape, dtype)
        _variants[key] = variant
    else:
        _forced = variant
    logger.info("%s: %s", _OP, variant if shape is None else f"{variant} for {shape}, {dtype}")


def choose_variant(
    rows: int,
    width: int,
    predict: int,
    dtype: torch.dtype,
    device: torch.device,
    runs: Runs | None = None,
) -> str:
    """ "fused" or "composed" for a head of M rows, D columns and C predicted values.

    runs: {variant: its forward}, timed on a GPU when a shape is met first, and kept on disk. Without
    them, elsewhere and while a CUDA graph is captured it is an estimate.
    """
    if _forced is not None:
        return _forced
    key = (rows, width, predict, dtype)
    if key in _variants:
        return _variants[key]
    if runs and device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        shape = f"{rows} rows, {width} to {predict}, {str(dtype).removeprefix('torch.')}"
        _variants[key] = measured_choice(
            f"{_OP} {shape}", list(VARIANTS), device, {"variants of": _OP},
            functools.partial(in_turns, runs, device),
        )  # fmt: skip
        return _variants[key]
    # full fp32 products do not run on the tensor cores in Triton: leave them to the library
    slow = dtype == torch.float32 and device.type == "cuda"
    return "composed" if slow or rows * width * predict > COMPOSED_FROM else "fused"


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
    return dispatch.function(_OP, x)(x, contiguous(mask), ln_w, ln_b, weight, bias, target, eps)


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
    implementation = dispatch.function(f"{_OP}_backward", x)
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
    check_projection(_OP, x, mask, ln_w, ln_b, weight, bias)
    rows = x.shape[0] if mask is None else mask.numel()
    check(_OP, "target", target, shape=(rows, weight.shape[0]), like=x)
    check_constant(_OP, "target", target)
    return _forward_op(x, mask, ln_w, ln_b, weight, bias, target, eps)[0]


masked_cosine_head.reference = reference  # type: ignore[attr-defined]


def _forward_torch(x, mask, ln_w, ln_b, weight, bias, target, eps):
    y = normalised(x, mask, ln_w, ln_b, eps)[1]
    return negative_cosine_forward(torch.addmm(bias, y, weight.t()), target)


def _backward_torch(dloss, x, mask, ln_w, ln_b, weight, bias, target, statistics, eps):
    rows, y, mean, rstd = normalised(x, mask, ln_w, ln_b, eps)
    p = torch.addmm(bias, y, weight.t())
    dp = negative_cosine_backward(dloss, p, target, statistics)
    return project_backward(dp, rows, y, x, mask, ln_w, ln_b, weight, mean, rstd)


dispatch.register(_OP, "torch", _forward_torch)
dispatch.register(f"{_OP}_backward", "torch", _backward_torch)


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
