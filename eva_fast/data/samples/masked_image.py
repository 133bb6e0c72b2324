"""The sample of masked image modelling: one crop, flipped by chance, and a block-wise mask."""

import functools

import numpy as np

from eva_fast.data.decode.limits import MAX_MEGAPIXELS
from eva_fast.data.samples.crop import Cropper
from eva_fast.data.samples.fields import Field
from eva_fast.data.samples.image import ImageField
from eva_fast.data.samples.mask import BlockMasker, BlockMaskField
from eva_fast.errors import UsageError


def masked_image_fields(
    *,
    image_size: int = 224,
    patch_size: int = 14,
    mask_ratio: float | None = None,
    mask_count: int | None = None,
    min_block: int = 16,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> list[Field]:
    """The fields `images`, uint8 [3, S, S], and `mask`, int32 [K].

    Arguments:
        image_size, patch_size: side of the crop and of a patch, in pixels.
        mask_ratio, mask_count: share or number of masked patches an image; one of them.
        min_block: smallest block of the mask, in patches.
        scale, ratio, flip: of the random resized crop, as torchvision names them.
        max_megapixels: images of more million pixels are refused.

    Raises ValueError for settings that do not fit together.
    """
    if image_size < 1 or patch_size < 1 or image_size % patch_size:
        raise UsageError(
            f"image_size {image_size} must be a multiple of patch_size {patch_size}: "
            f"{max(1, round(image_size / max(1, patch_size))) * patch_size} would be"
        )
    side = image_size // patch_size
    if (mask_ratio is None) == (mask_count is None):
        raise UsageError("give one of mask_ratio and mask_count")
    if mask_count is None:
        assert mask_ratio is not None
        if not 0 < mask_ratio <= 1:
            raise UsageError(f"mask_ratio must be above 0 and at most 1, got {mask_ratio}")
        mask_count = max(1, round(mask_ratio * side * side))
    return [
        ImageField(image_size, scale, ratio, flip, max_megapixels=max_megapixels),
        BlockMaskField((side, side), mask_count, min_block),
    ]


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
