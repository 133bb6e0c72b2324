"""Calls into csrc/input: JPEG bytes to a resized crop, the resize and the colour jitter of pixels.

Decoding is most of a sample's time and no Python package decodes a part of a JPEG, so csrc/ calls
libjpeg-turbo itself: it skips what the crop does not touch. It hands back everything unusual or
damaged, for Pillow to judge; without libjpeg-turbo at build time, everything.
"""

import ctypes
import functools

import numpy as np

from eva_fast import native
from eva_fast.data.decode.container import jpeg_metadata
from eva_fast.data.decode.filters import NUMBERS, Interpolation
from eva_fast.data.decode.orientation import UPRIGHT, orientation


@functools.cache
def library() -> ctypes.CDLL | None:
    """The native library, told the arguments of the calls below; None where it is not built."""
    found = native.library()
    if found is None:
        return None
    integer, pointer, real, flag = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double, ctypes.c_int32
    found.eva_resize.argtypes = [pointer, *[integer] * 5, *[real] * 4, integer, flag, flag, pointer]
    found.eva_resize.restype = None
    found.eva_jitter.argtypes = [pointer, *[integer] * 3, pointer, integer]
    found.eva_jitter.restype = None
    if hasattr(found, "eva_jpeg_crop"):
        found.eva_jpeg_info.argtypes = [ctypes.c_char_p, integer, pointer]
        found.eva_jpeg_crop.argtypes = [
            ctypes.c_char_p, *[integer] * 5, flag, integer, flag, flag, pointer, integer, pointer,
        ]  # fmt: skip
    return found


def available() -> bool:
    """Whether libjpeg-turbo was found when the native library was built."""
    return hasattr(library(), "eva_jpeg_crop")


def jpeg_info(data: bytes) -> tuple[int, int, int] | None:
    """(width, height, orientation) as stored; None where `jpeg_crop` cannot serve the file."""
    functions = library()
    if functions is None or not available():
        return None
    info = (ctypes.c_int64 * 3)()
    if not functions.eva_jpeg_info(data, len(data), info):
        return None
    return info[0], info[1], orientation(*jpeg_metadata(data)) if info[2] else UPRIGHT


def jpeg_crop(
    data: bytes,
    box: tuple[int, int, int, int],
    divisor: int,
    size: int,
    flip: bool,
    out: np.ndarray,
    interpolation: Interpolation = "bicubic",
    blends: np.ndarray | None = None,
) -> bool:
    """Writes the crop (left, top, width, height) in stored pixels, resized, to `out` uint8 [3,S,S].

    divisor: 1, 2, 4 or 8; how many times smaller a side the image may be decoded. blends: colour jitter
    of the whole image before the crop, as `jitter` takes it. False where libjpeg-turbo does not handle
    the file or finds it damaged; `out` is then undefined.
    """
    functions = library()
    if functions is None or not available():
        return False
    colours = (None, 0) if blends is None else (blends.ctypes.data, len(blends))
    return bool(
        functions.eva_jpeg_crop(
            data,
            len(data),
            *box,
            divisor,
            size,
            flip,
            NUMBERS[interpolation],
            *colours,
            out.ctypes.data,
        )
    )


def resize(
    pixels: np.ndarray,
    box: tuple[float, float, float, float],
    size: int,
    flip: bool,
    out: np.ndarray,
    interpolation: Interpolation = "bicubic",
) -> bool:
    """Antialiased resize of uint8 [H, W, C] to `out` uint8 [3, size, size].

    box: (left, top, right, bottom) in pixels, not necessarily whole; what lies outside `pixels`
    does not contribute. C is 1 (written three times), 3, or 4 of which the last is ignored. Within
    2 of 255 of Pillow's result. False where the native library is not built.
    """
    functions = library()
    if functions is None:
        return False
    if pixels.strides[2] != 1 or pixels.strides[1] != pixels.shape[2]:
        pixels = np.ascontiguousarray(pixels)
    height, width, channels = pixels.shape
    functions.eva_resize(
        pixels.ctypes.data, height, width, pixels.strides[0], channels, min(channels, 3), *box,
        size, flip, NUMBERS[interpolation], out.ctypes.data,
    )  # fmt: skip
    return True


BLEND = np.dtype([("kind", np.int32), ("factor", np.float32)])
"""One of the blends of a colour jitter: which (csrc/input/jitter.h numbers them) and how strong."""


def jitter(pixels: np.ndarray, blends: np.ndarray) -> bool:
    """Blends the colours of uint8 [H, W, 3], C-contiguous, in place, to the byte as Pillow's
    `ImageEnhance` does. blends: `BLEND` [n], in their order. False where the native library is not
    built; nothing is changed then."""
    functions = library()
    if functions is None:
        return False
    height, width, channels = pixels.shape
    functions.eva_jitter(
        pixels.ctypes.data, height, width, channels * width, blends.ctypes.data, len(blends)
    )
    return True
