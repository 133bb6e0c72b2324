"""Block-wise masks of the patch grid, as EVA-01 (after BEiT) draws them, with an exact count."""

import ctypes
import functools
import math
from collections.abc import Callable

import numpy as np
import torch

from eva_fast import native
from eva_fast.data.samples.fields import Field
from eva_fast.errors import UsageError

# csrc/input/masks.cpp has the same constants and arithmetic: change both together.
STREAM = np.uint64(0x6D61736B5F626C6B)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
TOP_UP = 1 << 32
TRIES = 10
LEVELS = 4096
MAX_PATCHES = 1 << 20


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser on uint64 arrays (wraps around by intent)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@functools.cache
def _aspects() -> np.ndarray:
    """int64 [LEVELS] in Q20: aspect ratios spread evenly in the logarithm over [0.3, 1/0.3].

    A table in integers, because exp() differs in the last bit between maths libraries and a mask
    must not.
    """
    step = -2 * math.log(0.3) / LEVELS
    values = [math.exp(math.log(0.3) + step * (i + 0.5)) for i in range(LEVELS)]
    return np.array([round(v * (1 << 20)) for v in values], dtype=np.int64)


@functools.cache
def _block_masks() -> Callable[..., None]:
    library = native.library()
    assert library is not None
    function = library.eva_block_masks
    integer, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [pointer, *[integer] * 6, pointer, integer, pointer]
    function.restype = None
    return function


class BlockMasker:
    """Draws block-wise masks with exactly `count` masked patches each.

    A mask is a union of rectangles: area uniform in [`min_block`, patches still wanted], aspect
    ratio log-uniform in [0.3, 1/0.3], uniform position; a rectangle is taken when it fits and adds
    between one patch and the number still wanted. With `max_block`, never more than that are wanted
    of one rectangle. Ten failures in a row end this phase, in which
    the official generator stops (it reaches its 105 of 256 in 65 % of the draws). What is then
    missing, 0.6 patches on average, is topped up one patch at a time: among the unmasked patches
    with the most masked neighbours (of four) one is drawn uniformly. That fills notches in the
    outline first, so the length of the outline stays that of the official masks.

    Arguments:
        grid: rows and columns of patches, any size up to 2^20 patches.
        count: masked patches of each mask, 1 .. rows * columns.
        min_block: smallest area wanted of a rectangle, in patches. 16 belongs to a 16x16 grid;
            for smaller grids about rows * columns / 16 keeps the look.
        max_block: largest area wanted of a rectangle, and most patches that one adds; None: `count`.
        seed: start of the sequence that calling the masker gives.

    Raises ValueError for arguments out of range.
    """

    def __init__(
        self,
        grid: tuple[int, int] = (16, 16),
        count: int = 105,
        min_block: int = 16,
        seed: int = 0,
        max_block: int | None = None,
    ) -> None:
        height, width = (int(n) for n in grid)
        if height < 1 or width < 1 or height * width > MAX_PATCHES:
            raise UsageError(
                f"grid must have 1 to {MAX_PATCHES} patches, got {height} rows x {width} columns"
            )
        if not 1 <= count <= height * width:
            raise UsageError(
                f"count of masked patches must be 1 to {height * width} on a {height}x{width} grid,"
                f" got {count}"
            )
        if not 1 <= min_block <= MAX_PATCHES:
            raise UsageError(f"min_block must be 1 to {MAX_PATCHES} patches, got {min_block}")
        most = count if max_block is None else max_block
        if most < 1:
            raise UsageError(f"max_block must be at least 1 patch, got {max_block}")
        self.grid = (height, width)
        self.count = int(count)
        self.min_block = int(min_block)
        self.max_block = min(int(most), self.count)
        self.seed = int(seed)
        self._drawn = 0

    def __call__(self, batch: int) -> torch.Tensor:
        """The next `batch` masks of the sequence: bool [batch, rows, columns], True is masked."""
        if batch < 0:
            raise UsageError(f"batch must not be negative, got {batch}")
        with np.errstate(over="ignore"):
            first = np.uint64(self.seed % (1 << 64)) + np.uint64(self._drawn) * GOLDEN
            seeds = _mix(first + np.arange(1, batch + 1, dtype=np.uint64) * GOLDEN)
        self._drawn += batch
        masks = np.zeros((batch, self.grid[0] * self.grid[1]), dtype=bool)
        np.put_along_axis(masks, self.indices(seeds).astype(np.int64), True, axis=1)
        return torch.from_numpy(masks).view(batch, *self.grid)

    def indices(self, seeds: np.ndarray) -> np.ndarray:
        """int32 [B, count]: the masked patches' row-major indices, ascending, for uint64 seeds [B].

        Each row is a function of its own seed alone: not of the batch, the machine, or whether the
        native library is there.
        """
        seeds = np.ascontiguousarray(np.atleast_1d(seeds), dtype=np.uint64)
        if seeds.ndim != 1:
            raise UsageError(f"seeds must be one-dimensional, got shape {seeds.shape}")
        library = native.library()
        return self._indices_numpy(seeds) if library is None else self._indices_native(seeds)

    def _indices_native(self, seeds: np.ndarray) -> np.ndarray:
        out = np.empty((len(seeds), self.count), dtype=np.int32)
        _block_masks()(
            seeds.ctypes.data, len(seeds), *self.grid, self.count, self.min_block, self.max_block,
            _aspects().ctypes.data, LEVELS, out.ctypes.data,
        )  # fmt: skip
        return out

    def _indices_numpy(self, seeds: np.ndarray) -> np.ndarray:
        """The same masks, all images of the batch in lockstep: try t is each one's own try t."""
        with np.errstate(over="ignore"):
            keys = _mix(seeds ^ STREAM)
            masks = np.zeros((len(seeds), *self.grid), dtype=bool)
            failures = np.zeros(len(seeds), dtype=np.int64)
            tries = 0
            while True:
                wanted = self.count - masks.sum((1, 2), dtype=np.int64)
                active = np.flatnonzero((wanted > 0) & (failures < TRIES))
                if not len(active):
                    break
                most = np.minimum(wanted[active], self.max_block)
                added = self._add_block(masks, active, keys[active], 4 * tries, most)
                failures[active] = np.where(added > 0, 0, failures[active] + 1)
                tries += 1
            draw = TOP_UP
            while len(short := np.flatnonzero(masks.sum((1, 2)) < self.count)):
                self._top_up(masks, short, keys[short], draw)
                draw += 1
        flat = masks.reshape(len(seeds), self.grid[0] * self.grid[1])
        return np.nonzero(flat)[1].reshape(len(seeds), self.count).astype(np.int32)

    def _add_block(
        self, masks: np.ndarray, rows: np.ndarray, keys: np.ndarray, draw: int, wanted: np.ndarray
    ) -> np.ndarray:
        height, width = self.grid
        low, high = np.minimum(wanted, self.min_block), np.maximum(wanted, self.min_block)
        area = (low << 16) + (((high - low) * _draw(keys, draw)) >> 16)
        level = _below(keys, draw + 1, LEVELS)
        h = _rounded_root(area * _aspects()[level])
        w = _rounded_root(area * _aspects()[LEVELS - 1 - level])
        top = _below(keys, draw + 2, np.maximum(height - h + 1, 1))[:, None]
        left = _below(keys, draw + 3, np.maximum(width - w + 1, 1))[:, None]
        y, x = np.arange(height), np.arange(width)
        inside_y = (y >= top) & (y < top + h[:, None])
        inside_x = (x >= left) & (x < left + w[:, None])
        fresh = inside_y[:, :, None] & inside_x[:, None, :] & ~masks[rows]
        added = fresh.sum((1, 2), dtype=np.int64)
        added[(h >= height) | (w >= width) | (added > wanted)] = 0
        masks[rows] |= fresh & (added > 0)[:, None, None]
        return added

    def _top_up(self, masks: np.ndarray, rows: np.ndarray, keys: np.ndarray, draw: int) -> None:
        mask = np.pad(masks[rows], ((0, 0), (1, 1), (1, 1))).astype(np.int8)
        touching = mask[:, :-2, 1:-1] + mask[:, 2:, 1:-1] + mask[:, 1:-1, :-2] + mask[:, 1:-1, 2:]
        touching = np.where(masks[rows], -1, touching).reshape(len(rows), -1)
        candidate = touching == touching.max(1, keepdims=True)
        chosen = _below(keys, draw, candidate.sum(1, dtype=np.int64))
        position = np.argmax(candidate.cumsum(1) == (chosen + 1)[:, None], axis=1)
        masks.reshape(len(masks), -1)[rows, position] = True


class BlockMaskField(Field):
    """The masked patches of a sample: int32 [count], row-major indices over the grid, ascending.

    Arguments as for `BlockMasker`.
    """

    from_seeds = True

    def __init__(
        self,
        grid: tuple[int, int],
        count: int,
        min_block: int = 16,
        max_block: int | None = None,
        *,
        name: str = "mask",
    ):
        self.masker = BlockMasker(grid, count, min_block, max_block=max_block)
        super().__init__(name, np.int32, (self.masker.count,))

    def make_rows(self, seeds: np.ndarray, out: np.ndarray) -> None:
        out[:] = self.masker.indices(seeds)


def _draw(keys: np.ndarray, n: int) -> np.ndarray:
    """The n-th draw of each stream: 32 random bits as int64 [B]."""
    return (_mix(keys + np.uint64(n + 1) * GOLDEN) >> np.uint64(32)).astype(np.int64)


def _below(keys: np.ndarray, n: int, limit: int | np.ndarray) -> np.ndarray:
    """The n-th draw of each stream as a number in [0, limit)."""
    return (_draw(keys, n) * limit) >> 32


def _rounded_root(square: np.ndarray) -> np.ndarray:
    """sqrt of area (Q16) times aspect (Q20), rounded to whole patches."""
    return np.floor(np.sqrt(square.astype(np.float64)) / (1 << 18) + 0.5).astype(np.int64)
