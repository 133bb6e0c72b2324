"""The filters that crops are resized with; all are stretched where an image shrinks (antialiased)."""

from typing import Literal, get_args

Interpolation = Literal["bicubic", "bilinear", "lanczos", "hamming"]
Choice = Literal["bicubic", "bilinear", "lanczos", "hamming", "random"]
"""random: bilinear or bicubic, as the sample's seed draws it."""
CHOICES: tuple[Choice, ...] = get_args(Choice)

# Numbered as in csrc/input/filter.h.
NUMBERS: dict[Interpolation, int] = {"bicubic": 0, "bilinear": 1, "lanczos": 2, "hamming": 3}
