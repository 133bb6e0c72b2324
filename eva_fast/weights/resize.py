"""Weights for another image or patch size: position embeddings and patch convolutions resized."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Position embedding of grid `old` for grid `new`: antialiased bicubic.

    Args:
        table: [..., prefix + rows * columns, D]; the prefix (class and register tokens) stays.
        old, new: (rows, columns).
    """
    if old == new:
        return table
    if table.ndim > 2:
        return torch.stack([resize_positions(t, old, new) for t in table])
    prefix, patches = table.split((len(table) - old[0] * old[1], old[0] * old[1]))
    patches = patches.T.reshape(1, -1, *old)
    patches = F.interpolate(patches, new, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([prefix, patches.flatten(2)[0].T])


def resize_patches(weight: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Patch convolution [D,C,h,w] for patches of `size` pixels, so that a patch that is enlarged as
    well gives what it gave (FlexiViT, Beyer et al. 2023): the pseudo-inverse of the resize, applied to
    the kernel. Shrinking loses what small patches cannot hold."""
    new = (size, size) if isinstance(size, int) else size
    old = (weight.shape[2], weight.shape[3])
    if old == new:
        return weight
    basis = torch.eye(old[0] * old[1], dtype=torch.float64).view(-1, 1, *old)
    resized = F.interpolate(basis, new, mode="bicubic", align_corners=False, antialias=True)
    inverse = torch.linalg.pinv(resized.flatten(1).T)  # pixels of the old patch from the new one's
    kernels = weight.detach().double().cpu().flatten(2) @ inverse
    return kernels.unflatten(2, new).to(weight)
