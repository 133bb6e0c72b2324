"""The end of a network as one branch: the last residual addition, the final norm, a Linear.

    x' = x + scale (branch + bias);  out = LN(x') W^T + b

It keeps x' and the row statistics; the backward computes the norm again.
"""

from typing import Any

import torch
from torch import Tensor, nn

from eva_fast.layers.add_norm import add_norm, add_norm_backward, rows_of
from eva_fast.layers.linear import Linear, Matrix, RoundedWeight
from eva_fast.layers.stream import Stream, as_stream
from eva_fast.ops.linear import matmul, weight_gradient


class _ProjectionBranch(torch.autograd.Function):
    """The last residual addition, the final norm and the head's Linear."""

    @staticmethod
    def forward(
        ctx, x, branch, branch_bias, scale, norm_weight, norm_bias, weight, bias, copy, eps
    ):
        used = weight if copy is None else copy
        total, y, mean, rstd = add_norm(
            ctx, x, branch, branch_bias, scale, norm_weight, norm_bias, eps
        )
        ctx.save_for_backward(total, mean, rstd, scale, norm_weight, norm_bias, used)
        ctx.weight_dtype = weight.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return matmul(rows_of(y), used.t(), None if bias is None else bias.to(used.dtype))

    @staticmethod
    def backward(ctx, dout):
        total, mean, rstd, scale, norm_weight, norm_bias, weight = ctx.saved_tensors
        dout = rows_of(dout)
        dy = matmul(dout, weight).view_as(total)
        pending, y = add_norm_backward(
            ctx, dy, None, total, mean, rstd, norm_weight, norm_bias, scale
        )
        dweight = weight_gradient(dout, rows_of(y), ctx.weight_dtype)
        dbias = None if ctx.bias_dtype is None else dout.sum(0, dtype=ctx.bias_dtype)
        return *pending, dweight, dbias, None, None


def projection_branch(
    stream: Stream,
    norm_weight: Tensor,
    norm_bias: Tensor,
    head: Matrix,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """Adds what is pending in `stream`, normalises, projects: [rows, C]."""
    return _ProjectionBranch.apply(
        *stream, norm_weight, norm_bias, head.weight, bias, head.copy, eps
    )


class _Projects(RoundedWeight):
    """Can take the norm before it into its pass."""

    bias: Any

    def project(self, stream: Stream | Tensor, norm: nn.LayerNorm) -> Tensor:
        """`projection_branch` with this module's parameters: this Linear of `norm(stream)`,
        [rows, C], row-major over (image, token). stream: or tokens [B, T, D]."""
        stream = as_stream(stream)
        head = self.matrix(stream.x.dtype)
        return projection_branch(stream, norm.weight, norm.bias, head, self.bias, norm.eps)


class Projection(_Projects, Linear):
    """A Linear that can take the norm before it into its pass."""


class PointwiseProjection(_Projects, nn.Conv1d):
    """The same with the weight [C, D, 1] of a convolution of one token, as Feature Distillation's
    files have it."""
