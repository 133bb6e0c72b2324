"""Colour jitter of the whole image, before its crop: brightness, contrast and saturation.

As torchvision's `ColorJitter` of a Pillow image has it: each a blend, with black, with the image's mean
grey, with its own grey, by factors uniform in 1 - strength (0 at least) to 1 + strength, in a random
order. Contrast is of the mean of all of the image, so that a crop's depends on more than its own pixels.
csrc/input/jitter.cpp computes the same bytes.
"""

from itertools import permutations

import numpy as np
from PIL import Image, ImageEnhance

from eva_fast.data.decode.jpeg import BLEND, jitter
from eva_fast.data.samples.seeds import HALF, LOWER, MASK64, mix64

STREAM = 0x6A69747465725F63  # sets these draws apart from the crop's and the mask's
# Numbered as in csrc/input/jitter.h.
KINDS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
ORDERS = tuple(permutations(range(len(KINDS))))


def draw_jitter(seed: int, strength: float) -> np.ndarray:
    """`BLEND` [3] (index into `KINDS`, factor), in the order of application, as the 64-bit seed draws
    them."""
    key = mix64((seed ^ STREAM) & MASK64)
    first, second = mix64((key + 1) & MASK64), mix64((key + 2) & MASK64)
    draws = ((first >> 32) * HALF, (first & LOWER) * HALF, (second >> 32) * HALF)
    order = ORDERS[(second & LOWER) * len(ORDERS) >> 32]
    low, high = max(0.0, 1 - strength), 1 + strength
    return np.array([(kind, low + (high - low) * draws[kind]) for kind in order], BLEND)


def jittered(image: Image.Image, blends: np.ndarray) -> Image.Image:
    """An RGB image with its colours blended."""
    pixels = np.array(image)
    if jitter(pixels, blends):
        return Image.fromarray(pixels)
    for kind, factor in blends:
        image = KINDS[kind](image).enhance(float(factor))
    return image
