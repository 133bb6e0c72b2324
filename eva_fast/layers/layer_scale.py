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


def scaled_matrix(weight: Tensor, gamma: Tensor, dtype: torch.dtype) -> Matrix:
    """gamma W of W [N, K] and gamma [N], as products in `dtype` read it."""
    with torch.no_grad():
        scaled = torch.empty_like(weight, dtype=dtype)
        torch.mul(weight, gamma[:, None], out=scaled)
    return Matrix(_Scaled.apply(weight, gamma), scaled)


def folded(
    linear: Linear, gamma: Tensor | None, dtype: torch.dtype
) -> tuple[Matrix, Tensor | None]:
    """The weight [N, K] and bias [N] of gamma * linear(x), as a branch that computes in `dtype` reads
    them; gamma [N], None: 1."""
    if gamma is None:
        return linear.operand(dtype), parameter(linear, "bias")
    bias = None if linear.bias is None else gamma * linear.bias
    if linear.eight_bits is None or dtype != torch.bfloat16:
        return scaled_matrix(linear.weight, gamma, dtype), bias
    matrix = scaled_matrix(linear.weight, gamma, linear.weight.dtype)
    with torch.no_grad():
        return Matrix(matrix.weight, linear.eight_bits.of(matrix.copy)), bias
