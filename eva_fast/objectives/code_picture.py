"""Codes of patches as flat squares of colour, for pictures."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eva_fast.objectives.picture import cell_side

GOLDEN_RATIO = 0.6180339887  # neighbouring codes get hues far apart


def code_colours(codes: Tensor) -> np.ndarray:
    """uint8 [n,N,3]: a hue for each code of int64 [n,N], the same in every picture."""
    hue = (codes.cpu().double() * GOLDEN_RATIO % 1)[..., None]
    shift = torch.arange(3, dtype=torch.float64) / 3
    return (127.5 * (1 + torch.cos(2 * torch.pi * (hue + shift)))).byte().numpy()


def squares(colours: np.ndarray, grid: tuple[int, int], side: int) -> Tensor:
    """uint8 [n,3,S,S]: each patch of colours uint8 [n,N,3] a flat square, as large as images of `side`
    pixels are drawn."""
    maps = torch.from_numpy(colours).float().mT.unflatten(2, grid)
    return F.interpolate(maps, size=(cell_side(side),) * 2, mode="nearest").byte()
