"""The filters that crops are resized with; both are stretched where an image shrinks (antialiased)."""

from typing import Literal

from PIL import Image

Interpolation = Literal["bicubic", "bilinear"]

# Numbered as in csrc/input/filter.h.
NUMBERS: dict[Interpolation, int] = {"bicubic": 0, "bilinear": 1}
PILLOWS: dict[Interpolation, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
