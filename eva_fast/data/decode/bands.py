"""Pictures of any number of channels: `.npy` arrays, multi-page and multi-band TIFF, what Pillow reads.

Values are scaled as their type says: whole numbers without a sign by the largest of their type, so that
8 and 16 bits lie in 0..1; numbers with a sign and floats stay as they are.

An array is [H,W], or [H,W,C] or [C,H,W]: the dimension that is as long as there are channels. Where both
ends are, nothing says which it is, and the array is refused. A TIFF says it itself: pages, bands or both
are its channels, page after page.
"""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence

from eva_fast.data.decode.limits import MAX_MEGAPIXELS
from eva_fast.data.decode.pillow import BadImage, check_size, upright, upright_image
from eva_fast.errors import UsageError
from eva_fast.libraries import library

NPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION = 274
GREY16 = 65535


def read_bands(data: Any, channels: int, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """float32 [channels,H,W] of an encoded file, an array, a tensor or a Pillow image.

    Raises BadImage for what cannot be read, has another number of channels, leaves open which of its
    dimensions they are, or holds values that are not finite; TypeError for other objects.
    """
    if isinstance(data, (bytes, bytearray, memoryview)):
        found = _from_file(bytes(data), channels, max_megapixels)
    elif isinstance(data, Image.Image):
        found = _from_pillow(upright_image(data, max_megapixels), channels)
    elif isinstance(data, (np.ndarray, torch.Tensor)):
        found = _from_array(np.asarray(data), channels, max_megapixels)
    else:
        raise TypeError(f"an image must be bytes, a PIL image or an array, got {type(data)}")
    bands = scaled(found)
    if not np.isfinite(bands).all():
        raise BadImage("it has values that are not finite")
    return bands


def kind_of(data: bytes) -> str:
    """A file's format by its first bytes: NPY, TIFF, or as Pillow names it."""
    if data.startswith(NPY):
        return "NPY"
    if data.startswith(TIFF):
        return "TIFF"
    with Image.open(io.BytesIO(data)) as image:
        return str(image.format)


def scaled(values: np.ndarray) -> np.ndarray:
    """float32, as the module says."""
    if values.dtype.kind == "u":
        return (values / np.float64(np.iinfo(values.dtype).max)).astype(np.float32)
    if values.dtype.kind in "bif":
        return values.astype(np.float32)
    raise BadImage(f"its values are of type {values.dtype}, which is no kind of number")


def _from_file(data: bytes, channels: int, max_megapixels: float) -> np.ndarray:
    if data.startswith(NPY):
        try:
            array = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise BadImage(" ".join(str(error).split())[:200]) from error
        return _from_array(array, channels, max_megapixels)
    if data.startswith(TIFF):
        return _fitting(_from_tiff(data, max_megapixels), channels)
    return _from_pillow(upright(data, max_megapixels), channels)


def _from_array(array: np.ndarray, channels: int, max_megapixels: float) -> np.ndarray:
    shape = " x ".join(map(str, array.shape))
    if array.ndim == 2:
        found = array[None]
    elif array.ndim == 3:
        first, last = array.shape[0] == channels, array.shape[2] == channels
        if first and last:
            raise BadImage(
                f"an array of {shape} may be [H,W,C] or [C,H,W] with {channels} channels: nothing tells "
                "which; save it with other sides, or as TIFF"
            )
        found = np.moveaxis(array, 2, 0) if last else array
    else:
        raise BadImage(f"an array of {shape} is no image: [H,W], [H,W,C] or [C,H,W] is")
    if len(found) != channels:
        raise BadImage(f"an array of {shape} has no dimension of {channels} channels")
    check_size(found.shape[2], found.shape[1], max_megapixels)
    return found


def _from_tiff(data: bytes, max_megapixels: float) -> np.ndarray:
    """[C,H,W] of all pages and bands, upright."""
    try:
        tifffile = library("tifffile", "tifffile", "TIFF", "or save the images as .npy")
    except UsageError as error:
        raise BadImage(str(error)) from None
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series = file.series[0]
            sizes = dict(zip(series.axes, series.shape))
            check_size(sizes.get("X", 0), sizes.get("Y", 0), max_megapixels)
            array, axes = series.asarray(), series.axes
            turned = file.pages[0].tags.get(ORIENTATION)
    except BadImage:
        raise
    except Exception as error:  # damaged files raise many types
        if "imagecodecs" in str(error):  # a compression that Pillow may know
            return _pages(data, max_megapixels)
        raise BadImage(" ".join(str(error).split())[:200] or type(error).__name__) from error
    places = [axes.index("Y"), axes.index("X")]
    others = [n for n in range(array.ndim) if n not in places]
    bands = array.transpose(*others, *places).reshape(-1, *(array.shape[n] for n in places))
    return _turned(bands, 1 if turned is None else int(turned.value))


def _pages(data: bytes, max_megapixels: float) -> np.ndarray:
    """[C,H,W] of all pages of a TIFF by Pillow, which turns them itself."""
    try:
        with Image.open(io.BytesIO(data)) as file:
            check_size(file.width, file.height, max_megapixels)
            pages = [np.atleast_3d(np.asarray(page)) for page in ImageSequence.Iterator(file)]
        return np.moveaxis(np.concatenate(pages, axis=2), 2, 0)
    except BadImage:
        raise
    except Exception as error:
        raise BadImage("its compression needs more than Pillow: pip install imagecodecs") from error


def _turned(bands: np.ndarray, orientation: int) -> np.ndarray:
    """Bands [C,H,W] as stored, upright: TIFF's tag 274."""
    if orientation in (5, 6, 7, 8):
        bands = bands.transpose(0, 2, 1)
    if orientation in (2, 3, 6, 7):
        bands = bands[:, :, ::-1]
    if orientation in (3, 4, 7, 8):
        bands = bands[:, ::-1]
    return bands


def _from_pillow(image: Image.Image, channels: int) -> np.ndarray:
    """[C,H,W] of an upright image; colours are made grey where one channel is wanted."""
    mode = image.mode
    if mode in ("1", "P", "PA", "YCbCr", "La", "RGBa", "HSV", "LAB"):
        seen = "RGBA" if mode in ("PA", "RGBa") or "transparency" in image.info else "RGB"
        image = image.convert({"1": "L", "La": "LA"}.get(mode, seen))
    if channels == 1 and image.mode in ("RGB", "RGBA", "LA"):
        image = image.convert("L")
    array = np.asarray(image)
    if image.mode == "I":  # 16 bits, of files that Pillow gives 32
        array = (array / GREY16).astype(np.float32)
    return _fitting(array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0), channels)


def _fitting(bands: np.ndarray, channels: int) -> np.ndarray:
    if len(bands) != channels:
        raise BadImage(f"it has {len(bands)} channels, and the run reads {channels}")
    return bands
