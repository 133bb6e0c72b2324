"""Weights for another image or patch size: position embeddings and patch convolutions resized."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eva_fast.errors import UsageError

RESIZES = ("timm", "official")
"""Whose numbers: timm's antialiased positions and FlexiViT's patches, which keep what a patch gives; or
the official EVA-01 code's plain bicubic for both, which leaves a kernel's values at their old scale."""

_BICUBIC: dict[str, Any] = dict(mode="bicubic", align_corners=False)


def resize_positions(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], resize: str = "timm"
) -> Tensor:
    """Position embedding of grid `old` for grid `new`, bicubic.

    Args:
        table: [..., prefix + rows * columns, D]; the prefix (class and register tokens) stays.
        old, new: (rows, columns).
        resize: one of `RESIZES`.
    """
    antialias = check(resize) == "timm"
    if old == new:
        return table
    if table.ndim > 2:
        return torch.stack([resize_positions(t, old, new, resize) for t in table])
    prefix, patches = table.split((len(table) - old[0] * old[1], old[0] * old[1]))
    patches = patches.T.reshape(1, -1, *old)
    patches = F.interpolate(patches, new, **_BICUBIC, antialias=antialias)
    return torch.cat([prefix, patches.flatten(2)[0].T])


def resize_patches(weight: Tensor, size: int | tuple[int, int], resize: str = "timm") -> Tensor:
    """Patch convolution [D,C,h,w] for patches of `size` pixels.

    resize="timm": so that a patch that is enlarged as well gives what it gave (FlexiViT, Beyer et al.
    2023): the pseudo-inverse of the resize, applied to the kernel; shrinking loses what small patches
    cannot hold. "official": the kernel as a picture, bicubic, in float32."""
    check(resize)
    new = (size, size) if isinstance(size, int) else size
    old = (weight.shape[2], weight.shape[3])
    if old == new:
        return weight
    if resize == "official":
        return F.interpolate(weight.detach().float(), new, **_BICUBIC).to(weight)
    basis = torch.eye(old[0] * old[1], dtype=torch.float64).view(-1, 1, *old)
    resized = F.interpolate(basis, new, **_BICUBIC, antialias=True)
    inverse = torch.linalg.pinv(resized.flatten(1).T)  # pixels of the old patch from the new one's
    kernels = weight.detach().double().cpu().flatten(2) @ inverse
    return kernels.unflatten(2, new).to(weight)


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Patch convolution [D,3,h,w] for images of other channels, as timm does it: one channel gets the
    sum of the three; more get them again and again, times 3/channels, so that grey images give what
    they gave. A convolution of other than three channels stays as it is."""
    if channels == weight.shape[1] or weight.shape[1] != 3:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight.repeat(1, -(-channels // 3), 1, 1)[:, :channels] * (3 / channels)


def check(resize: str) -> str:
    """`resize` if it is one of `RESIZES`, else UsageError."""
    if resize not in RESIZES:
        raise UsageError(f"resize must be one of {', '.join(RESIZES)}, not {resize!r}")
    return resize
