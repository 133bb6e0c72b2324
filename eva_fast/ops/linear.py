"""Matrix products of the step: a library's GEMM, or on CPUs the project's own where it is built.

    matmul(a, b, bias) = a b + bias            a [M, K], b [K, N], bias [N]; either may be transposed
    linear(x, weight, bias) = x weight^T + bias, differentiable
    weight_gradient(g, x) = g^T x              in the dtype of the parameter

On a GPU the vendor's GEMM is the right tool and is called as it is. On a CPU in float32 the op
"gemm" runs: PyTorch's library or `csrc/ops/gemm.h`, which uses the whole of the cores of every
vendor, hands out its work piece by piece, and adds the bias while the tile is in registers;
`gemm_choice` measures which is faster.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from eva_fast.ops import dispatch

_OP = "gemm"


@torch.library.custom_op("eva_fast::gemm", mutates_args=())
def _gemm_op(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return dispatch.function(_OP, a)(a, b, bias)


@_gemm_op.register_fake
def _(a, b, bias):
    return a.new_empty((a.shape[0], b.shape[1]))


@register_flop_formula(torch.ops.eva_fast.gemm)
def _(a_shape, b_shape, bias_shape=None, *_, **__):
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


def plain_gemm(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b, plus bias, by PyTorch's library."""
    return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)


dispatch.register(_OP, "torch", plain_gemm)


def matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [M, K] times b [K, N], plus bias [N]: [M, N], contiguous. Not differentiable on CPUs."""
    if a.device.type == "cpu":
        return _gemm_op(a, b, bias)
    return plain_gemm(a, b, bias)


def weight_gradient(g: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """g^T x of g [M, N] and x [M, K]: [N, K] in `dtype`, accumulated in float32.

    Where the GPU's GEMM can write float32 from 16-bit operands, that saves the rounding and a cast.
    """
    if dtype == g.dtype:
        return matmul(g.t(), x)
    if g.device.type == "cuda" and dtype == torch.float32:
        return torch.mm(g.t(), x, out_dtype=dtype)
    return matmul(g.t(), x).to(dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, weight_copy):
        used = weight if weight_copy is None else weight_copy
        rows = x.reshape(-1, x.shape[-1])
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
            dweight = weight_gradient(grad, rows, ctx.dtype)
        if ctx.bias_dtype is not None:
            dbias = grad.sum(0, dtype=ctx.bias_dtype)
        return dx, dweight, dbias, None


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, weight_copy: Tensor | None = None
) -> Tensor:
    """x [..., K] weight^T + bias, [..., N]; differentiable.

    weight: [N, K]; bias: [N] or None. weight_copy: the weight in x's dtype where the parameter
    itself is float32 and the arithmetic 16 bit; gradients go to the parameter, in its dtype.
    """
    return _Linear.apply(x, weight, bias, weight_copy)
