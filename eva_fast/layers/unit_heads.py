"""Cosine attention's q and k: each head of each token divided by its norm, q times a gain a head.

    q' = g q / |q|,  k' = k / |k|,  g = exp(min(logit_scale, ln 100));  v stays as it is
    dq = g (dq' - q' (q' . dq') / g^2) / |q|,  dk = (dk' - k' (k' . dk')) / |k|
    dlogit_scale = sum over batch and tokens of q' . dq', and 0 where it is above ln 100

(SwinV2, Liu et al. 2022, section 3.2; norms are at least 1e-12, as in torch's `normalize`.) Both
directions write over what they read: nobody needs q and k as they were.
"""

import math

import torch
from torch import Tensor

from eva_fast.ops.checks import statistics_dtype

LARGEST = math.log(100)
SMALLEST_NORM = 1e-12


def gain(logit_scale: Tensor) -> Tensor:
    """g of a `logit_scale` [H, 1, 1]: [H]."""
    return logit_scale.flatten().clamp(max=LARGEST).exp()


def to_unit_heads_(packed: Tensor, logit_scale: Tensor) -> Tensor:
    """Writes q' and k' into packed [B, T, 3, H, d]; returns the factors g / |q| and 1 / |k|,
    [B, T, 2, H] in float32 (float64 of float64). logit_scale: [H, 1, 1]."""
    pair = packed[:, :, :2]
    norm = torch.linalg.vector_norm(pair, dim=-1, dtype=statistics_dtype(packed))
    factor = norm.clamp_min_(SMALLEST_NORM).reciprocal_()
    factor[:, :, 0] *= gain(logit_scale).to(factor.dtype)
    pair.copy_(pair * factor[..., None])  # rounded once from float32
    return factor


def from_unit_heads_(
    dpacked: Tensor, packed: Tensor, factor: Tensor, logit_scale: Tensor
) -> Tensor:
    """Turns the gradient of what `to_unit_heads_` wrote, dpacked [B, T, 3, H, d], into that of what
    it read; returns logit_scale's, [H, 1, 1]. packed, factor: what it wrote and gave."""
    pair, unit = dpacked[:, :, :2].to(factor.dtype), packed[:, :, :2].to(factor.dtype)
    along = (unit * pair).sum(-1)
    dscale = along[:, :, 0].sum((0, 1)).masked_fill_(logit_scale.flatten() > LARGEST, 0)
    along[:, :, 0] /= gain(logit_scale).to(factor.dtype).square()
    across = torch.addcmul(pair, unit, along[..., None], value=-1)
    dpacked[:, :, :2] = across.mul_(factor[..., None])
    return dscale.view(logit_scale.shape).to(logit_scale.dtype)
