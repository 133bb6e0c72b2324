"""From the bytes of any picture Pillow knows to an upright 8-bit RGB image."""

import contextlib
import io
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from eva_fast.data.decode.container import Content, content, raw_profile
from eva_fast.data.decode.filters import NUMBERS, Interpolation
from eva_fast.data.decode.formats import use_plugins
from eva_fast.data.decode.limits import MAX_MEGAPIXELS
from eva_fast.data.decode.orientation import TAG, UPRIGHT, orientation, turn

PILLOWS: dict[Interpolation, Image.Resampling] = {
    name: Image.Resampling[name.upper()] for name in NUMBERS
}
LARGE = 1 << 26  # pixels; above it what is done to an image is done in parts, to take less memory
MOST_SCANS = 500  # encoders write at most some dozens
_ASK_ONCE = (None, "JPEG", "MPO", "PNG", "WEBP")  # None: made in memory
_lock = threading.Lock()


class BadImage(Exception):
    """An image that cannot be decoded: `reason` says why, in one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check_size(width: int, height: int, max_megapixels: float = MAX_MEGAPIXELS) -> None:
    """Raises BadImage for an image of more pixels than `max_megapixels` millions, a decompression
    bomb if nothing else is known of it, and for an empty one."""
    if width * height > max_megapixels * 1e6:
        raise BadImage(
            f"{width}x{height} is {width * height / 1e6:.6g} megapixels, above the limit "
            f"max_megapixels={max_megapixels:g}; raise max_megapixels if such pictures are meant"
        )
    if width < 1 or height < 1:
        raise BadImage(f"no pixels ({width}x{height})")


class Decoded(NamedTuple):
    """An upright RGB image, `divisor` times smaller a side than the `width` x `height` it has."""

    image: Image.Image
    width: int
    height: int
    divisor: int = 1


def decode(
    data: bytes,
    largest_divisor: Callable[[int, int], float] = lambda width, height: 1.0,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Decoded:
    """The image in the encoded file `data`; of an animation, the first frame.

    All pixels are read, so a truncated file is noticed; what else a file holds is not looked at.

    Arguments:
        data: the file's bytes.
        largest_divisor: of the image's width and height, how many times smaller a side the caller
            can do with; a JPEG then comes at the cheapest of 1, 1/2, 1/4, 1/8, unless it is rotated
            or has so little chroma that scaling would cost colour.
        max_megapixels: as for `check_size`.

    Raises BadImage for whatever Pillow cannot read and for images of more pixels than that.
    """
    with _opened(data, max_megapixels) as (image, parts):
        turned = orientation(parts.exif, parts.xmp) if parts else _left_to_turn(image)
        width, height = image.size
        divisor = 1
        if parts and image.format == "JPEG" and turned == UPRIGHT and _fine_chroma(image):
            most = largest_divisor(width, height)
            divisor = next((d for d in (8, 4, 2) if d <= most), 1)
            image.draft(None, (width // divisor, height // divisor))
        image.load()
        upright = _to_rgb(turn(image, turned))
        if divisor == 1:
            width, height = upright.size
        return Decoded(upright, width, height, divisor)


def upright(data: bytes, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """The image in the encoded file `data` in its own mode. Raises BadImage as `decode` does."""
    with _opened(data, max_megapixels) as (image, parts):
        turned = orientation(parts.exif, parts.xmp) if parts else _left_to_turn(image)
        image.load()
        return turn(image, turned)


def upright_image(image: Image.Image, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """A Pillow image, perhaps not loaded yet, upright in its own mode; the argument is left as it is.

    Raises BadImage as `decode` does."""
    check_size(image.width, image.height, max_megapixels)
    try:
        with _limit_lifted(image, max_megapixels):
            return _upright(image)
    except Exception as error:
        raise BadImage(_one_line(error)) from error


def look(data: bytes, max_megapixels: float = MAX_MEGAPIXELS) -> tuple[str, str, tuple[int, int]]:
    """(format, Pillow's mode, (width, height) as stored) of an encoded file, all of it decoded.

    Raises BadImage as `decode` does.
    """
    with _opened(data, max_megapixels) as (image, _):
        seen = str(image.format), image.mode, image.size
        image.load()
    return seen


def open_image(image: Image.Image, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """A Pillow image, perhaps not loaded yet, as upright RGB; the argument is left as it is.

    Raises BadImage as `decode` does.
    """
    check_size(image.width, image.height, max_megapixels)
    try:
        with _limit_lifted(image, max_megapixels):
            return to_rgb(image)
    except Exception as error:
        raise BadImage(_one_line(error)) from error


def crop(image: Image.Image, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """A part of an image; Pillow's own `crop` refuses those above Pillow's limit on pixels."""
    if _within_pillows_limit(right - left, bottom - top):
        return image.crop((left, top, right, bottom))
    return Image.fromarray(np.asarray(image)[top:bottom, left:right])


@contextlib.contextmanager
def _opened(data: bytes, max_megapixels: float) -> Iterator[tuple[Image.Image, Content | None]]:
    """(a Pillow image, not loaded, of the file's pixels alone; the file's parts where its format is
    one of those that `content` knows). What goes wrong in the block is a BadImage too."""
    if not data:
        raise BadImage("empty file")
    parts = content(data)
    if parts and parts.scans > MOST_SCANS:
        # Each scan of a progressive JPEG passes over all pixels again, however few its bytes.
        raise BadImage(f"{parts.scans} scans are above the limit of {MOST_SCANS}")
    bare = parts.bare if parts else data
    try:
        try:
            image = _identified(bare)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            with _limit_lifted(None, max_megapixels):  # by a plugin that reads pixels at once
                image = _identified(bare)
        with image:
            check_size(*image.size, max_megapixels)
            with _limit_lifted(image, max_megapixels):
                yield image, parts
    except BadImage:
        raise
    except Exception as error:  # Pillow's plugins raise nearly every type on damaged files
        raise BadImage(_one_line(error)) from error


def _identified(data: bytes) -> Image.Image:
    """`Image.open` for bytes, without its limit on pixels: that is the process's, not ours to set."""
    use_plugins()
    for load_plugins in (Image.preinit, Image.init):
        load_plugins()
        for kind in Image.ID:
            factory, accepts = Image.OPEN[kind]
            accepted = accepts is None or accepts(data[:16])
            if not accepted or isinstance(accepted, str):  # text says why it cannot be read here
                continue
            try:
                return factory(io.BytesIO(data), "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue
    raise BadImage("not an image in a format that Pillow reads")


def _within_pillows_limit(width: int, height: int) -> bool:
    limit = Image.MAX_IMAGE_PIXELS
    return limit is None or width * height <= limit


@contextlib.contextmanager
def _limit_lifted(image: Image.Image | None, max_megapixels: float) -> Iterator[None]:
    """Sets Pillow's limit on pixels to ours for a moment. It is a global of the process, so only for
    an image above it whose plugin asks it again while it reads, as TIFF's does."""
    if image and (image.format in _ASK_ONCE or _within_pillows_limit(*image.size)):
        yield
        return
    with _lock:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = int(max_megapixels * 1e6)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _left_to_turn(image: Image.Image) -> int:
    """How to turn a Pillow image once it is loaded: Pillow turns most TIFFs itself then."""
    info = image.info
    exif, xmp = info.get("exif"), info.get("xmp") or info.get("XML:com.adobe.xmp")
    if exif is None and (profile := info.get("Raw profile type exif")):
        exif = raw_profile(_as_bytes(profile))
    if image.format == "TIFF":
        try:
            tag = image.getexif().get(TAG)  # XMP's where Pillow sees it
        except Exception:  # Pillow's reader of damaged EXIF data raises many types
            tag = None
        if isinstance(tag, bytes):  # the type BYTE, which Pillow takes for no number
            return tag[0] if len(tag) == 1 else UPRIGHT
        if tag is not None:
            return UPRIGHT
    return orientation(_as_bytes(exif), _as_bytes(xmp))


def _as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else value.encode() if isinstance(value, str) else b""


def _fine_chroma(image: Any) -> bool:
    """Whether a JPEG has at least half of luma's rows and columns of chroma: else it may not be
    decoded at a reduced size (csrc/input/jpeg.cpp has the same rule)."""
    (_, h, v, *_), *chroma = image.layer
    return all(h in (x, 2 * x) and v in (y, 2 * y) for _, x, y, *_ in chroma)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image, left as it is, as upright 8-bit RGB.

    EXIF or XMP orientation is applied (data/decode/orientation.py); transparency is composited on
    white; 16-bit grey is scaled to 8 bits (Pillow's own conversion would clip it); grey, palette,
    CMYK and the rest as Pillow converts.
    """
    return _to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    if image.format != "TIFF":
        image.load()  # a PNG's EXIF data may stand behind its pixels
    left_to_turn = _left_to_turn(image)
    return turn(image.copy(), left_to_turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.width * image.height <= LARGE or image.mode == "F":  # whose scale its values decide
        return _converted(image)
    whole = Image.new("RGB", image.size)
    rows = max(1, LARGE // 16 // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        whole.paste(_converted(crop(image, 0, top, image.width, bottom)), (0, top))
    return whole


def _converted(image: Image.Image) -> Image.Image:
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
    return text[:200] or type(error).__name__
