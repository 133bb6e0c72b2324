"""Masks that MAE draws: every set of patches of one size is equally likely (He et al. 2021, section 3).

A patch's noise is a hash of the sample's seed and the patch; the patches with the smallest noise stay
visible, the others are dropped. The two fields of a sample are the two halves of one draw, so that
nothing on the device has to sort, and both have one shape in every step.
"""

from typing import Literal

import numpy as np

from eva_fast.data.samples.fields import Field
from eva_fast.data.samples.seeds import mix64_array
from eva_fast.errors import UsageError

STREAM = np.uint64(0x756E69666F726D5F)
GOLDEN = 0x9E3779B97F4A7C15


class UniformMaskField(Field):
    """One half of the patches of a sample: int32, row-major indices over the grid, ascending.

    Arguments:
        grid: rows and columns of patches.
        visible: how many patches stay, at least 1 and not all.
        part: which half this field holds, the `dropped` or the `visible` patches.
        name: of the field; by default `mask` for the dropped patches, `visible` for the others.

    Each row is a function of its own seed alone. Raises ValueError for a number out of range.
    """

    from_seeds = True

    def __init__(
        self,
        grid: tuple[int, int],
        visible: int,
        part: Literal["dropped", "visible"] = "dropped",
        *,
        name: str | None = None,
    ):
        self.patches, self.visible, self.part = grid[0] * grid[1], visible, part
        if not 0 < visible < self.patches:
            raise UsageError(
                f"visible patches must be 1 to {self.patches - 1} on a {grid[0]}x{grid[1]} grid, "
                f"got {visible}"
            )
        size = visible if part == "visible" else self.patches - visible
        super().__init__(name or {"dropped": "mask"}.get(part, part), np.int32, (size,))

    def make_rows(self, seeds: np.ndarray, out: np.ndarray) -> None:
        keys = mix64_array(np.asarray(seeds, np.uint64) ^ STREAM)
        # patch n's noise is the n-th number of the stream that the key starts, as splitmix64's
        steps = np.arange(self.patches, dtype=np.uint64) * np.uint64(GOLDEN)
        order = mix64_array(keys[:, None] + steps).argsort(axis=1, kind="stable")
        chosen = order[:, : self.visible] if self.part == "visible" else order[:, self.visible :]
        out[:] = np.sort(chosen, axis=1)


def uniform_mask_fields(grid: tuple[int, int], visible: int) -> list[UniformMaskField]:
    """The fields `mask`, int32 [N - visible], and `visible`, int32 [visible], of one draw."""
    return [UniformMaskField(grid, visible, "dropped"), UniformMaskField(grid, visible, "visible")]
