"""What teachers that are vision transformers share: the input's size, and rows of patches for it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from eva_fast.layers.patch_embed import patch_rows
from eva_fast.ops.patchify import aligned_columns, patchify
from eva_fast.teachers.base import Teacher


class TowerConfig(Protocol):
    """What a tower's configuration says of its input."""

    @property
    def patch_size(self) -> int: ...
    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


class TowerTeacher(Teacher):
    """A teacher whose input is resized so that its own patches fall on `grid` (None: its native grid).

    dim: channels of its features. token_size: pixels a side that one feature stands for, if more than a
    patch's. The other arguments are `Teacher`'s.
    """

    capturable = True

    def __init__(
        self,
        name: str,
        dim: int,
        config: TowerConfig,
        grid: tuple[int, int] | None,
        whiten: bool,
        token_size: int | None = None,
    ) -> None:
        grid = grid or config.grid
        token_size = token_size or config.patch_size
        size = (grid[0] * token_size, grid[1] * token_size)
        super().__init__(name, dim, grid, size, config.mean, config.std, whiten)
        self.config = config

    def rows(self, images: Tensor) -> Tensor:
        """Patches of images, normalised: [B, N, 3 * patch^2] in the compute dtype. 8-bit images of the
        input's size are read once."""
        patch = self.config.patch_size
        if images.dtype == torch.uint8 and tuple(images.shape[-2:]) == self.input_size:
            mean, std = self.config.mean, self.config.std
            columns = aligned_columns(patch, self.compute_dtype, images.device.type)
            return patchify(images, patch, mean, std, self.compute_dtype, columns=columns)
        return patch_rows(self.prepare(images), patch, self.compute_dtype)
