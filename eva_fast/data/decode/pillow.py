"""From the bytes of any picture Pillow knows to an upright 8-bit RGB image."""

import contextlib
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from eva_fast.data.decode.formats import use_plugins

ORIENTATION = 0x0112  # EXIF tag
START_OF_SCAN = b"\xff\xda"
MOST_SCANS = 500  # encoders write at most some dozens


class BadImage(Exception):
    """An image that cannot be decoded: `reason` says why, in one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check_size(width: int, height: int) -> None:
    """Raises BadImage for a decompression bomb, by Pillow's own limit, and for an empty image."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise BadImage(f"{width}x{height} is above the limit of {limit} pixels")
    if width < 1 or height < 1:
        raise BadImage(f"no pixels ({width}x{height})")


def check_scans(data: bytes) -> None:
    """Raises BadImage for a JPEG of so many scans that decoding it would take minutes: each scan of
    a progressive JPEG passes over all pixels again, however few its bytes."""
    if data.startswith(b"\xff\xd8") and (scans := data.count(START_OF_SCAN)) > MOST_SCANS:
        raise BadImage(f"{scans} scans are above the limit of {MOST_SCANS}")


class Decoded(NamedTuple):
    """An upright RGB image, `divisor` times smaller a side than the `width` x `height` it has."""

    image: Image.Image
    width: int
    height: int
    divisor: int = 1


def decode(
    data: bytes, largest_divisor: Callable[[int, int], float] = lambda width, height: 1.0
) -> Decoded:
    """The image in the encoded file `data`; of an animation, the first frame.

    The whole file is read, so a truncated one is noticed.

    Arguments:
        data: the file's bytes.
        largest_divisor: of the image's width and height, how many times smaller a side the caller
            can do with; a JPEG then comes at the cheapest of 1, 1/2, 1/4, 1/8, unless it is rotated
            or has so little chroma that scaling would cost colour.

    Raises BadImage for whatever Pillow cannot read and for images above its pixel limit.
    """
    if not data:
        raise BadImage("empty file")
    check_scans(data)
    use_plugins()
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            check_size(width, height)
            divisor = 1
            if image.format in ("JPEG", "MPO") and _scales(image):
                most = largest_divisor(width, height)
                divisor = next((d for d in (8, 4, 2) if d <= most), 1)
                image.draft(None, (width // divisor, height // divisor))
            upright = to_rgb(image)
            if divisor == 1:
                width, height = upright.size
            return Decoded(upright, width, height, divisor)
    except BadImage:
        raise
    except Exception as error:  # Pillow's plugins raise nearly every type on damaged files
        raise BadImage(_one_line(error)) from error


def _scales(image: Any) -> bool:
    """Whether a JPEG may be decoded at a reduced size: upright, and with at least half of luma's rows
    and columns of chroma (csrc/input/jpeg.cpp has the same rule)."""
    try:
        upright = image.getexif().get(ORIENTATION, 1) == 1
    except Exception:  # Pillow's reader of damaged EXIF data raises many types
        upright = False
    (_, h, v, *_), *chroma = image.layer
    return upright and all(h in (x, 2 * x) and v in (y, 2 * y) for _, x, y, *_ in chroma)


def open_image(image: Image.Image) -> Image.Image:
    """A Pillow image, perhaps not loaded yet, as upright RGB; the argument is left as it is.

    Raises BadImage as `decode` does.
    """
    check_size(image.width, image.height)
    try:
        return to_rgb(image.copy())
    except Exception as error:
        raise BadImage(_one_line(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as upright 8-bit RGB.

    EXIF rotation is applied where the EXIF data is sound; transparency is composited on white;
    16-bit grey is scaled to 8 bits (Pillow's own conversion would clip it); grey, palette, CMYK and
    the rest as Pillow converts.
    """
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF data says nothing against the pixels
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return _wide_grey(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _wide_grey(image: Image.Image) -> Image.Image:
    """16- and 32-bit integers over [0, 65535], floats over [0, 1] or, where larger, [0, 255]."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    if image.mode == "F":
        scale = 255.0 if values.max(initial=0) <= 1 else 1.0
    else:
        scale = 1 / 257
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "cannot identify image file" in text:
        return "not an image in a format that Pillow reads"
    return text[:200] or type(error).__name__
