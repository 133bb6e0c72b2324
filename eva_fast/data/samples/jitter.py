"""Colour jitter of the whole image, before its crop: brightness, contrast and saturation.

As torchvision's `ColorJitter` of a Pillow image has it: each a blend, with black, with the image's mean
grey, with its own grey, by factors uniform in 1 - strength to 1 + strength, in a random order. Contrast
is of the mean of all of the image, so that a crop's depends on more than its own pixels.
"""

from itertools import permutations

import numpy as np
import torch
from PIL import Image, ImageEnhance

from eva_fast.data.decode.limits import MAX_MEGAPIXELS
from eva_fast.data.decode.pillow import decode, open_image
from eva_fast.data.samples.crop import HALF, LOWER, Cropper, tensor_pixels
from eva_fast.data.samples.fields import Field
from eva_fast.data.samples.image import ImageField
from eva_fast.data.samples.seeds import MASK64, mix64
from eva_fast.errors import UsageError

STREAM = 0x6A69747465725F63  # sets these draws apart from the crop's and the mask's
KINDS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
ORDERS = tuple(permutations(range(len(KINDS))))


def draw_jitter(seed: int, strength: float) -> list[tuple[int, float]]:
    """(index into `KINDS`, factor) in the order of application, as the 64-bit seed draws them."""
    key = mix64((seed ^ STREAM) & MASK64)
    first, second = mix64((key + 1) & MASK64), mix64((key + 2) & MASK64)
    draws = ((first >> 32) * HALF, (first & LOWER) * HALF, (second >> 32) * HALF)
    order = ORDERS[(second & LOWER) * len(ORDERS) >> 32]
    return [(kind, 1 + strength * (2 * draws[kind] - 1)) for kind in order]


def jittered(image: Image.Image, seed: int, strength: float) -> Image.Image:
    """An RGB image with the colours that the seed draws."""
    for kind, factor in draw_jitter(seed, strength):
        image = KINDS[kind](image).enhance(factor)
    return image


class JitteredCropper(Cropper):
    """A `Cropper` of images whose colours were jittered. It decodes all of an image, a JPEG at a smaller
    size where the crop allows."""

    def __init__(
        self,
        size: int,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        flip: float,
        max_megapixels: float,
        strength: float,
    ):
        super().__init__(size, scale, ratio, flip, max_megapixels)
        if not 0 <= strength < 1:
            raise UsageError(f"colour jitter must be at least 0 and below 1, got {strength}")
        self.strength = strength

    def __call__(
        self,
        data: bytes | Image.Image | torch.Tensor | np.ndarray,
        seed: int,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        if isinstance(data, torch.Tensor):
            data = Image.fromarray(tensor_pixels(data, self.max_megapixels))
        if isinstance(data, Image.Image):
            image = open_image(data, self.max_megapixels)
            return super().__call__(jittered(image, seed, self.strength), seed, out)
        return super().__call__(data, seed, out)

    def defer(self, data: object, seed: int, out: np.ndarray) -> tuple[int, ...] | None:
        """None: another decoder would not know of the jitter."""
        return None

    def _from_file(self, data: bytes, seed: int, out: np.ndarray) -> None:
        def largest_divisor(width: int, height: int) -> float:
            return self._largest_divisor(self.box(width, height, seed))

        image, width, height, divisor = decode(data, largest_divisor, self.max_megapixels)
        image = jittered(image, seed, self.strength)
        self._from_pixels(image, self.box(width, height, seed), divisor, out)


class JitteredImageField(ImageField):
    """An `ImageField` whose images are jittered before the crop; strength: of all three, in [0, 1)."""

    def __init__(
        self,
        size: int,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        flip: float,
        *,
        strength: float,
        max_megapixels: float = MAX_MEGAPIXELS,
        name: str = "images",
    ):
        super().__init__(size, scale, ratio, flip, max_megapixels=max_megapixels, name=name)
        self.cropper = JitteredCropper(size, scale, ratio, flip, max_megapixels, strength)

    def decoded_on(self, device: torch.device) -> Field:
        return self
