"""The MLP as one branch with its own backward: norm, fc1, GELU, fc2.

    x' = x + scale (branch + bias);  y = LN(x');  h = y W1^T;  g = gelu(h + b1)
    result: x', g W2^T  (bias pending)

Products run in the weights' dtype, or that of their copies, whatever the stream's is. It keeps the
residual stream, the row statistics and h; the backward's GELU op gives dh, b1's
gradient and g once more for the weight gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from eva_fast.layers.add_norm import add_norm, add_norm_backward, rows_of
from eva_fast.layers.layer_scale import folded
from eva_fast.layers.linear import Linear, Matrix
from eva_fast.layers.members import child, parameter
from eva_fast.layers.products import (
    EightBitWeight,
    Rows,
    Weight,
    back,
    held,
    hold,
    in_columns,
    in_dtype,
    in_rows,
    known_scales,
    prepared,
    times,
    weight_gradient,
)
from eva_fast.layers.stream import Stream, leaving
from eva_fast.ops.bias_gelu import bias_gelu_backward, bias_gelu_forward
from eva_fast.ops.bias_gelu_fp8 import gelu_backward_unchecked, gelu_unchecked
from eva_fast.ops.checks import own_view
from eva_fast.ops.largest_row_norm import row_norm_unchecked


class MlpWeights(NamedTuple):
    """Parameters of an MLP branch."""

    norm_weight: Tensor
    norm_bias: Tensor
    fc1: Matrix
    fc1_bias: Tensor | None
    fc2: Matrix
    fc2_bias: Tensor | None
    eps: float
    kind: str = "erf"
    """The GELU, as `bias_gelu` names it."""


def mlp_forward(
    record, x, branch, branch_bias, scale, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight,
    fc1_copy, fc2_copy, eps, kind,
):  # fmt: skip
    """(x', fc2's product, the tensors that the backward reads); what else that reads is written to
    `record`, a function's context."""
    fc1_used = fc1_weight if fc1_copy is None else fc1_copy
    fc2_used = fc2_weight if fc2_copy is None else fc2_copy
    y_scale, g_scale = known_scales(fc1_used, norm_weight, norm_bias, fc1_bias)
    total, y, mean, rstd = add_norm(
        record, x, branch, branch_bias, scale, norm_weight, norm_bias, eps, y_scale
    )
    h, _ = times(y if y_scale is not None else rows_of(y), fc1_used)
    result, g_scale = times(_gelu(h, fc1_bias, kind, g_scale, fc2_used), fc2_used)
    saved = (
        total, mean, rstd, h, fc1_bias, scale, norm_weight, norm_bias, y_scale, g_scale,
        *hold(record, fc1_used, fc2_used),
    )  # fmt: skip
    record.weight_dtypes = fc1_weight.dtype, fc2_weight.dtype
    record.kind = kind
    return total, own_view(in_dtype(result, total.dtype), *total.shape), saved


def mlp_backward(record, saved, wants, dtotal, dresult):
    """Gradients of x, branch, branch bias, scale, norm weight, norm bias, fc1 weight, fc1 bias, fc2
    weight from those of x' and fc2's product. wants: whether each of the last three is wanted."""
    (
        total, mean, rstd, h, fc1_bias, scale, norm_weight, norm_bias, y_scale, g_scale, *weights,
    ) = saved  # fmt: skip
    w1, w2 = held(record, *weights)
    wants_fc1, wants_bias, wants_fc2 = wants
    dresult = prepared(dresult, w2)
    dh, g, dfc1_bias = _gelu_backward(
        dresult, h, fc1_bias, record.kind, g_scale, w1, w2, wants_fc2, wants_bias
    )
    dw1 = dw2 = None
    if wants_fc2:
        dw2 = weight_gradient(dresult, g, record.weight_dtypes[1], g_scale)
    dh = prepared(dh, w1)
    dy = in_dtype(back(dh, w1, h.dtype), total.dtype).view_as(total)
    pending, y = add_norm_backward(
        record, dy, dtotal, total, mean, rstd, norm_weight, norm_bias, scale, y_scale
    )
    if wants_fc1:
        rows = y if y_scale is not None else rows_of(y)
        dw1 = weight_gradient(dh, rows, record.weight_dtypes[0], y_scale)
    return *pending, dw1, dfc1_bias if wants_bias else None, dw2


class _MlpBranch(torch.autograd.Function):
    """Linear, GELU, Linear."""

    @staticmethod
    def forward(ctx, *given):
        total, result, saved = mlp_forward(ctx, *given)
        ctx.save_for_backward(*saved)
        return total, result

    @staticmethod
    def backward(ctx, dtotal, dresult):
        gradients = mlp_backward(ctx, ctx.saved_tensors, ctx.needs_input_grad[6:9], dtotal, dresult)
        return *gradients, None, None, None, None


def _gelu(h: Tensor, bias: Tensor, kind: str, g_scale: Tensor | None, fc2: Weight) -> Rows:
    """gelu(h + bias) as fc2 reads it."""
    if g_scale is None or isinstance(fc2, Tensor):
        return bias_gelu_forward(h, bias, kind)
    return in_rows(gelu_unchecked(h, bias, kind, g_scale), g_scale)


def _gelu_backward(
    dresult: Rows,
    h: Tensor,
    bias: Tensor,
    kind: str,
    g_scale: Tensor | None,
    fc1: Weight,
    fc2: Weight,
    want_g: bool,
    want_bias: bool,
) -> tuple[Rows, Rows, Tensor]:
    """(dh, gelu(h + bias), the bias's gradient) as the products read them, from fc2's gradient."""
    dg = back(dresult, fc2, h.dtype)
    if isinstance(fc1, EightBitWeight) and isinstance(fc2, EightBitWeight):
        row_norm = row_norm_unchecked(dresult.rows, dresult.scale)  # type: ignore[union-attr]
        dh, g, dbias = gelu_backward_unchecked(dg, h, bias, kind, g_scale, row_norm, fc2.norm)
        return dh, in_columns(g, g_scale), dbias  # type: ignore[arg-type]
    return bias_gelu_backward(dg, h, bias, kind, want_g=want_g, want_bias=want_bias)


def mlp_branch(stream: Stream, weights: MlpWeights) -> Stream:
    """Adds what is pending in `stream` and runs norm, fc1, GELU and fc2.

    Returns (x', fc2 without bias, its bias). The caller sets the drop-path scale.
    """
    w = weights
    x, branch = _MlpBranch.apply(
        *stream, w.norm_weight, w.norm_bias, w.fc1.weight, w.fc1_bias, w.fc2.weight, w.fc1.copy,
        w.fc2.copy, w.eps, w.kind,
    )  # fmt: skip
    return Stream(x, branch, w.fc2_bias)


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, Linear, with the norm before them and LayerScale's gamma [D] behind:
    `mlp(stream, norm, gamma) -> Stream`."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, stream: Stream, norm: nn.LayerNorm, gamma: Tensor | None = None) -> Stream:
        """`mlp_branch` with this module's parameters."""
        return leaving(self, mlp_branch(stream, self.weights(norm, gamma, stream.x.dtype)))

    def weights(self, norm: nn.LayerNorm, gamma: Tensor | None, dtype: torch.dtype) -> MlpWeights:
        """What the branch reads in `dtype`."""
        fc1 = child(self, "fc1")
        fc2, fc2_bias = folded(child(self, "fc2"), gamma, dtype)
        return MlpWeights(
            norm_weight=parameter(norm, "weight"),
            norm_bias=parameter(norm, "bias"),
            fc1=fc1.operand(dtype),
            fc1_bias=parameter(fc1, "bias"),
            fc2=fc2,
            fc2_bias=fc2_bias,
            eps=norm.eps,
        )
