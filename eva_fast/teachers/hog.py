"""Histograms of oriented gradients of each patch: a teacher without weights.

As in MaskFeat (Wei et al. 2022): Sobel gradients of each colour channel (reflected at the border),
an unsigned orientation in 9 bins weighted by the gradient's length, summed over cells and
L2-normalised a cell and channel. MaskFeat's patches of 16 pixels hold 2 x 2 cells of 8 pixels; here
a patch of any size holds 2 x 2 cells, so the width is always 3 * 9 * 4 = 108, in the order (channel,
bin, cell row, cell column).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from eva_fast.errors import UsageError
from eva_fast.teachers.base import Teacher, select_patches

BINS = 9
CELLS = 2  # a side of a patch
CPU_VALUES = 1 << 17


class HogTeacher(Teacher):
    """HOG features on `grid`; the patch size follows from the images it is given.

    An image side that is no multiple of 2 * grid gives cells that differ by one pixel: pixel y
    belongs to cell floor(2 * rows * y / H).
    """

    capturable = True

    def __init__(self, grid: tuple[int, int], whiten: bool = False) -> None:
        # Mean 0 and std 1/255: `prepare` gives back pixels in 0..255.
        super().__init__(
            "hog",
            3 * BINS * CELLS**2,
            grid,
            None,
            mean=(0.0,) * 3,
            std=(1 / 255,) * 3,
            whiten=whiten,
        )

    def patch_features(self, images: Tensor, index: Tensor | None) -> Tensor:
        rows, columns = self.grid
        if images.shape[-2] < max(2, rows) or images.shape[-1] < max(2, columns):
            raise UsageError(
                f"HOG on a {rows}x{columns} grid needs a pixel a patch and two in all, "
                f"not images of {images.shape[-2]}x{images.shape[-1]}"
            )
        # A few images at a time stay in a CPU's cache through all steps: 2 to 3 times as fast.
        part = len(images)
        if images.device.type == "cpu":
            part = max(1, CPU_VALUES // images.shape[1:].numel())
        # Steps of 1/64 make the sums below exact, so images given as normalised floats fall into
        # the same bins as their bytes: drawings have many edges exactly on a bin's border.
        size = (rows * CELLS, columns * CELLS)
        cells = torch.cat(
            [cell_histograms(torch.round(x * 64) / 64, size) for x in images.split(part)]
        )
        cells = cells / cells.square().sum(2, keepdim=True).sqrt_().clamp_(min=1e-12)
        patches = cells.unflatten(4, (columns, CELLS)).unflatten(3, (rows, CELLS))
        patches = patches.permute(0, 3, 5, 1, 2, 4, 6).flatten(1, 2).flatten(2)
        return select_patches(patches, index)

    def freeze(self, device: str | torch.device, dtype: torch.dtype | None) -> Teacher:
        """Gradients of 8-bit images need float32: half precision cannot hold them."""
        return super().freeze(device, torch.float64 if dtype == torch.float64 else torch.float32)


def cell_histograms(images: Tensor, cells: tuple[int, int]) -> Tensor:
    """Sums of gradient lengths: images [B,3,H,W] -> [B,3,9,cell rows,cell columns]."""
    batch, channels, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    # Sobel as two passes of 1-D filters: smooth with (1,2,1) one way, difference the other way.
    smooth = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    gx = smooth[..., :-2] - smooth[..., 2:]
    smooth = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    gy = smooth[..., :-2, :] - smooth[..., 2:, :]
    length = torch.hypot(gx, gy)
    # Opposite gradients are one orientation. Turning them to one side first keeps the angle in
    # [0, pi), where the border between the last and the first bin cannot be crossed by rounding.
    flip = torch.where((gx < 0) | ((gx == 0) & (gy < 0)), -1.0, 1.0)
    angle = torch.atan2(gx * flip, gy * flip)
    orientation = (angle * (BINS / math.pi)).long().clamp_(0, BINS - 1)
    row = torch.arange(height, device=images.device) * cells[0] // height
    column = torch.arange(width, device=images.device) * cells[1] // width
    place = orientation * (cells[0] * cells[1]) + (row[:, None] * cells[1] + column)
    out = images.new_zeros(batch, channels, BINS * cells[0] * cells[1])
    out.scatter_add_(2, place.flatten(2), length.flatten(2))
    return out.view(batch, channels, BINS, *cells)
