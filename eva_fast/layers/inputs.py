"""What networks accept: images as bytes or normalised floats, masks as booleans or indices."""

from typing import Literal

import torch
from torch import Tensor

# OpenAI CLIP's normalisation, which EVA uses for student and teacher alike.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Channels = tuple[float, ...]
"""One number for red, green and blue each."""
Statistics = Literal["clip", "imagenet"]
STATISTICS: dict[str, tuple[Channels, Channels]] = {
    "clip": (CLIP_MEAN, CLIP_STD),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
}
"""(mean, deviation) by name, as weight files say what a student's images were normalised with."""


def normalise(
    images: Tensor,
    dtype: torch.dtype = torch.float32,
    mean: Channels = CLIP_MEAN,
    std: Channels = CLIP_STD,
) -> Tensor:
    """uint8 [B,3,H,W] -> (x/255 - mean)/std in `dtype`; floats are taken as normalised already."""
    if images.dtype != torch.uint8:
        return images.to(dtype)
    centre = images.new_tensor(mean, dtype=torch.float32).view(3, 1, 1)
    deviation = images.new_tensor(std, dtype=torch.float32).view(3, 1, 1)
    return ((images.float() / 255 - centre) / deviation).to(dtype)


def mask_indices(mask: Tensor, patches: int) -> Tensor:
    """Masked patches as indices [B,K], ascending.

    `mask` is int32 or int64 [B,K] (taken as it is, no host synchronisation), or bool [B,N] or
    [B,h,w] with the same number of True in every row, at least one, which gives int64. ValueError
    for anything else.
    """
    if mask.dtype in (torch.int32, torch.int64):
        if mask.ndim != 2 or mask.shape[1] == 0:
            raise ValueError(
                "mask indices must be [B,K] with K at least 1 (every image has at least one masked "
                f"patch), got shape {tuple(mask.shape)}"
            )
        return mask
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool or int32/int64 indices, got {mask.dtype}")
    flat = mask.flatten(1)
    if flat.shape[1] != patches:
        raise ValueError(f"mask has {flat.shape[1]} patches an image, the model has {patches}")
    counts = flat.sum(1)
    if not bool(((counts == counts[0]) & (counts > 0)).all()):
        raise ValueError(
            "every image must have the same number of masked patches, at least one; got "
            f"{int(counts.min())} to {int(counts.max())}"
        )
    return flat.nonzero()[:, 1].view(len(flat), -1)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows int [B,K] of x [B,T,D] -> [B,K,D], in plain PyTorch."""
    return x.gather(1, rows.long().unsqueeze(-1).expand(-1, -1, x.shape[-1]))
