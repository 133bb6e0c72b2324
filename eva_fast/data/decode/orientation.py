"""How a stored picture is turned to stand upright, from its EXIF or XMP data.

One rule for every decoder: EXIF's tag counts where there is one, of any integer type and either byte
order; else XMP's, an attribute or an element. What is out of range or malformed turns nothing.
"""

import re
from typing import Literal

from PIL import Image

TAG = 0x0112
UPRIGHT = 1
_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II": "little", b"MM": "big"}
# EXIF's integer types: (bytes, signed).
_INTEGERS = {
    1: (1, False), 3: (2, False), 4: (4, False), 16: (8, False),
    6: (1, True), 8: (2, True), 9: (4, True), 17: (8, True),
}  # fmt: skip
_XMP = re.compile(rb"""tiff:Orientation(?:\s*=\s*["']|(?:\s[^<>]*)?>)\s*([0-9]+)\s*["'<]""")
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(exif: bytes, xmp: bytes) -> int:
    """1 (upright) to 8, as EXIF counts them.

    Arguments:
        exif: a TIFF header with its directories, perhaps behind "Exif" and two zeros; or nothing.
        xmp: the XML packet, or nothing.
    """
    value = _from_exif(exif)
    if value is None and (found := _XMP.search(xmp)):
        value = int(found[1][:9])
    return value if value is not None and 1 <= value <= 8 else UPRIGHT


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """The picture upright; `image` itself where nothing is to be done."""
    if orientation not in _TRANSPOSE:
        return image
    return image.transpose(_TRANSPOSE[orientation])


def _from_exif(exif: bytes) -> int | None:
    """The tag's value, 0 where it is no whole number; None without the tag."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = _ORDERS.get(tiff[:2])
    if order is None:
        return None

    def number(at: int, size: int, signed: bool = False) -> int:
        """0 beyond the end."""
        raw = tiff[at : at + size]
        return int.from_bytes(raw, order, signed=signed) if len(raw) == size else 0

    directory = number(4, 4)
    if directory < 8:
        return None
    first = directory + 2
    last = min(first + 12 * number(directory, 2), len(tiff) - 11)
    for entry in range(first, last, 12):
        if number(entry, 2) != TAG:
            continue
        size, signed = _INTEGERS.get(number(entry + 2, 2), (0, False))
        if not size or number(entry + 4, 4) != 1:
            return 0
        return number(entry + 8 if size <= 4 else number(entry + 8, 4), size, signed)
    return None
