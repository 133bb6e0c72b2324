"""Linear layers on `gemm`.

linear(x, weight, bias) = x weight^T + bias, differentiable
product(x, weight, bias) = the same for functions that bring their own backward
weight_gradient(g, x) = g^T x              in the dtype of the parameter
"""

import torch
from torch import Tensor

from eva_fast.ops.checks import own_view
from eva_fast.ops.gemm import matmul


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K] weight^T + bias: [..., N]; without a bias never marked as a view, for FSDP2 warns of
    views that leave a unit. One call for GPUs, whose host makes the views in C++."""
    if not x.is_cpu:
        return torch.nn.functional.linear(x, weight, bias)
    out = matmul(x.reshape(-1, x.shape[-1]), weight.t(), bias)
    return out if x.dim() == 2 else own_view(out, *x.shape[:-1], weight.shape[0])


def weight_gradient(g: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """g^T x of g [M, N] and x [M, K]: [N, K] in `dtype`, accumulated in float32.

    Where the GPU's GEMM can write float32 from 16-bit operands, that saves the rounding and a cast.
    """
    if dtype == g.dtype:
        return matmul(g.t(), x)
    if g.is_cuda and dtype == torch.float32:
        return torch.mm(g.t(), x, out_dtype=dtype)
    return matmul(g.t(), x).to(dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, weight_copy):
        used = weight if weight_copy is None else weight_copy
        rows = x.reshape(-1, x.shape[-1])
        ctx.columns = used.shape[1]
        if rows.shape[1] > ctx.columns:
            used = torch.nn.functional.pad(used, (0, rows.shape[1] - ctx.columns))
        ctx.save_for_backward(rows, used)
        ctx.shape, ctx.dtype = x.shape, weight.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        out = matmul(rows, used.t(), None if bias is None else bias.to(used.dtype))
        return out.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx, grad):
        rows, weight = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = matmul(grad, weight).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            dweight = weight_gradient(grad, rows, ctx.dtype)[:, : ctx.columns]
        if ctx.bias_dtype is not None:
            dbias = grad.sum(0, dtype=ctx.bias_dtype)
        return dx, dweight, dbias, None


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, weight_copy: Tensor | None = None
) -> Tensor:
    """x [..., K] weight^T + bias, [..., N]; differentiable.

    weight: [N, K]; bias: [N] or None. weight_copy: the weight in x's dtype where the parameter
    itself is float32 and the arithmetic 16 bit; gradients go to the parameter, in its dtype. Where x is
    wider than the weight, what is behind its K columns must be zeros, which align its rows.
    """
    return _Linear.apply(x, weight, bias, weight_copy)
