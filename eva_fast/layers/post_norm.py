"""The end of a branch whose norm comes after it: x' = x + scale LN(h), forward and backward.

Swin V2 normalises what a branch gives, before it is added (Liu et al. 2022, section 3.1), so that the
last bias of the branch lies inside the norm, and its gradient is a column sum of dh, which the
norm's backward has at hand.
"""

import torch
from torch import Tensor

from eva_fast.ops.add_layer_norm import add_layer_norm_backward, add_layer_norm_forward


def add_normed(
    x: Tensor, h: Tensor, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(x + scale LN(h), mean, rstd) of x, h [B, N, C]; scale: float32 [B] or None."""
    _, y, mean, rstd = add_layer_norm_forward(h, None, None, None, weight, bias, eps)
    if scale is None:
        return y.add_(x), mean, rstd
    return torch.addcmul(x, y, scale.to(y.dtype)[:, None, None]), mean, rstd


def add_normed_backward(
    dout: Tensor,
    h: Tensor,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From dout [B, N, C]: (dh, dweight, dbias, column sums of dh, in the dtype of `weight`). dx is
    dout itself."""
    if scale is not None:
        dout = dout * scale.to(dout.dtype)[:, None, None]
    dh, _, _, dweight, dbias, sums = add_layer_norm_backward(
        dout, None, h, mean, rstd, weight, bias, None, False, True
    )
    return dh, dweight, dbias, sums
