"""One training sample from one file: the crop and the mask."""

import functools

import numpy as np

from eva_fast.data.samples.crop import Cropper
from eva_fast.data.samples.mask import BlockMasker
from eva_fast.errors import UsageError


def sample_from_bytes(
    data: bytes,
    seed: int,
    size: int = 224,
    patch: int = 14,
    count: int | None = None,
    min_block: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """What a loader worker makes of one encoded image, a function of (bytes, seed) alone.

    Arguments:
        data: the encoded file, any format.
        seed: 64-bit; gives crop, flip and mask through separate streams.
        size, patch: side of the crop and of a patch in pixels; size must be a multiple of patch.
        count: masked patches; default 105 of 256 in proportion (0.41).
        min_block: smallest area wanted of a mask's rectangle; default 16 of 256 in proportion.

    Returns numpy arrays (crop uint8 [3, size, size], mask indices int32 [count], ascending).
    Raises BadImage where the file cannot be decoded and ValueError for bad sizes.
    """
    if patch < 1 or size % patch or size < patch:
        raise UsageError(f"size must be a multiple of patch, got size {size} and patch {patch}")
    side = size // patch
    if count is None:
        count = max(1, round(side * side * 105 / 256))
    if min_block is None:
        min_block = max(1, side * side // 16)
    cropper, masker = _pair(size, side, count, min_block)
    crop = cropper(data, seed)
    return crop, masker.indices(np.array([seed % (1 << 64)], dtype=np.uint64))[0]


@functools.lru_cache(maxsize=16)
def _pair(size: int, side: int, count: int, min_block: int) -> tuple[Cropper, BlockMasker]:
    return Cropper(size), BlockMasker((side, side), count, min_block)
