"""Scales of a branch's 8-bit activations before anything of them is computed, from what they can be.

    y = w xhat + b,  h = y W^T + c:     |xhat| <= sqrt D  (a row of D values of variance 1)
    |y_j| <= max_j (sqrt(D) |w_j| + |b_j|)
    |h_j| <= SLACK (sqrt(D) max |w| + |b|) max_j |W_j| + max |c|            Cauchy-Schwarz
    scales: the least powers of two that hold both in e4m3

So the kernels that write y, gelu(h) (no larger than h) and attention's output (a mean of v, which is an
h) write 8 bits at once: nobody has to read a tensor to find its scale, and none overflows. A bound is
above the largest value, by 5 for y to some 10 for gelu(h) at ViT-g's sizes, and that costs range and no
digit: e4m3 has its full precision from 448 down to 2^-6, a 29,000th of that.

An implementation gets the norm's weight and bias [D], `norm` float32 [], and c [N] or None.
"""

import torch
from torch import Tensor

from eva_fast.ops.checks import check
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import direct
from eva_fast.ops.quantise_fp8 import scale_of
from eva_fast.ops.registry import define

__all__ = ["branch_scales"]
_NAME = "branch_scales"
FORMAT = torch.float8_e4m3fn
SLACK = 1.08
"""y is rounded to e4m3 (1 + 2^-4), h and attention's probabilities to bfloat16 (1 + 2^-8 each)."""


def reference(
    weight: Tensor, bias: Tensor, norm: Tensor, linear_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`branch_scales` in plain PyTorch."""
    weight, bias = weight.float(), bias.float()
    root = weight.shape[0] ** 0.5
    y = (root * weight.abs() + bias.abs()).amax()
    h = (root * weight.abs().amax() + bias.square().sum().sqrt()) * norm * SLACK
    if linear_bias is not None:
        h = h + linear_bias.float().abs().amax()
    return scale_of(y, FORMAT), scale_of(h, FORMAT)


def _scales(
    weight: Tensor, bias: Tensor, norm: Tensor, linear_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    return chosen(OP, weight)(weight, bias, norm, linear_bias)


_scales_op = torch.library.custom_op(f"eva_fast::{_NAME}", mutates_args=())(_scales)


@_scales_op.register_fake
def _(weight, bias, norm, linear_bias):
    return torch.empty_like(norm), torch.empty_like(norm)


def branch_scales(
    weight: Tensor, bias: Tensor, norm: Tensor, linear_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The scales, float32 [] each, of a norm's output and of what the Linear behind it leads to.

    weight, bias: [D], the norm's, in any floating dtype; norm: float32 [], the length of the longest
    row of the Linear's weight (`largest_row_norm`); linear_bias: [N] or None. NaN where one of them is
    not finite. Not differentiable. ValueError naming what does not fit.
    """
    check(_NAME, "weight", weight, shape=(None,))
    check(_NAME, "bias", bias, shape=weight.shape, like=weight)
    check(_NAME, "norm", norm, shape=(), dtypes=(torch.float32,), like=weight)
    if linear_bias is not None:
        check(_NAME, "linear_bias", linear_bias, shape=(None,), like=weight)
    return scales_unchecked(weight.detach(), bias.detach(), norm, linear_bias)


def scales_unchecked(weight, bias, norm, linear_bias) -> tuple[Tensor, Tensor]:
    """`branch_scales` without the checks."""
    run = _scales if direct(weight) else _scales_op
    return run(weight, bias, norm, linear_bias)


OP = define(_NAME, part="quantise", reference=reference, plain=reference)
branch_scales.reference = reference  # type: ignore[attr-defined]
