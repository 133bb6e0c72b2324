"""Where a crop lies in its image."""

from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle of an image, in pixels, and whether to mirror it left to right."""

    left: int
    top: int
    width: int
    height: int
    flip: bool
