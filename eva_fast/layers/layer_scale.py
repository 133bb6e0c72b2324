"""LayerScale, folded into the weights: x + gamma (h W^T + b) = x + h W'^T + b', without a pass of its
own (Touvron et al. 2021, "Going deeper with Image Transformers"; gamma_1 and gamma_2 in BEiT's code).

    W' = gamma W,  b' = gamma b          row by row, W' in the compute dtype
    dW = gamma dW',  db = gamma db',  dgamma = rowsum(dW' W) + db' b

W' is made for each call, also for 8-bit products: it follows two parameters, which no optimiser
writes as one.
"""

import torch
from torch import Tensor

from eva_fast.layers.linear import Linear, Matrix
from eva_fast.layers.members import parameter


class _Scaled(torch.autograd.Function):
    """W, standing for W' = gamma W: what reads W' gives dW' to it."""

    @staticmethod
    def forward(ctx, weight: Tensor, gamma: Tensor) -> Tensor:
        ctx.save_for_backward(weight, gamma)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, dscaled):
        weight, gamma = ctx.saved_tensors
        return dscaled * gamma[:, None], (dscaled * weight).sum(1)


def folded(
    linear: Linear, gamma: Tensor | None, dtype: torch.dtype
) -> tuple[Matrix, Tensor | None]:
    """The weight [N, K] and bias [N] of gamma * linear(x), as a branch that computes in `dtype` reads
    them; gamma [N], None: 1."""
    if gamma is None:
        return linear.operand(dtype), parameter(linear, "bias")
    weight = linear.weight
    with torch.no_grad():
        eight_bits = linear.eight_bits is not None and dtype == torch.bfloat16
        scaled = torch.empty_like(weight, dtype=weight.dtype if eight_bits else dtype)
        torch.mul(weight, gamma[:, None], out=scaled)
        copy = linear.eight_bits.of(scaled) if eight_bits else scaled  # type: ignore[union-attr]
    bias = None if linear.bias is None else gamma * linear.bias
    return Matrix(_Scaled.apply(weight, gamma), copy), bias
