"""The one crop of an image that student and teacher share: random, resized, perhaps flipped."""

import math

import numpy as np
import torch
from PIL import Image

from eva_fast.data.decode.box import Box
from eva_fast.data.decode.filters import CHOICES, NUMBERS, Choice, Interpolation
from eva_fast.data.decode.jpeg import jpeg_crop, jpeg_info, resize
from eva_fast.data.decode.limits import MAX_MEGAPIXELS
from eva_fast.data.decode.pillow import (
    LARGE,
    PILLOWS,
    Decoded,
    check_size,
    crop,
    decode,
    open_image,
)
from eva_fast.data.samples.jitter import draw_jitter, jittered
from eva_fast.data.samples.seeds import HALF, LOWER, MASK64, mix64
from eva_fast.errors import UsageError

STREAM = 0x63726F705F666C70  # sets the crop's draws apart from the mask's, for the same seed
FILTER_STREAM = 0x66696C7465725F63
RANDOM: tuple[Interpolation, Interpolation] = ("bilinear", "bicubic")
# A JPEG decoded at a reduced DCT scale keeps at least this many times the pixels a side that the
# crop needs: the worst of 300 crops of photographs is then 1.6 of 255 on average, 41 dB.
DRAFT_MARGIN = 2.0
DEFERRED_PIXELS = 64e6  # 192 MB on the device, times the images of a batch that are so large


class Cropper:
    """Random resized crop with a horizontal flip, as torchvision's RandomResizedCrop draws it.

    The box: area uniform in `scale` times the image's, aspect ratio (width / height) log-uniform in
    `ratio`, uniform position; after ten tries that do not fit, the largest centred box within
    `ratio`. It is resized with one of Pillow's antialiased filters (`interpolation`; "random": bilinear
    or bicubic, as the seed draws it), to `size` x `size`, and mirrored with probability `flip`. Before
    it is cut, the colours of the whole image are jittered by `color_jitter`, 0 for not at all
    (data/samples/jitter.py).

    A JPEG is decoded only where the crop needs it (where its colours are jittered, all of it), and at a
    half, a quarter or an eighth of the size where that suffices (data/decode/jpeg.py); all else is
    decoded by Pillow. The crop is within 2 of 255 on average, and 35 dB, of Pillow's crop of the whole
    image. Images of more than `max_megapixels` million pixels are refused unread.

    Raises ValueError for arguments out of range.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        max_megapixels: float = MAX_MEGAPIXELS,
        interpolation: Choice = "bicubic",
        color_jitter: float = 0.0,
    ) -> None:
        if size < 1:
            raise UsageError(f"crop size must be at least 1 pixel, got {size}")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise UsageError(f"scale must be 0 < low <= high <= 1, got {tuple(scale)}")
        if not 0 < ratio[0] <= ratio[1]:
            raise UsageError(f"ratio must be 0 < low <= high, got {tuple(ratio)}")
        if not 0 <= flip <= 1:
            raise UsageError(f"flip must be a probability, got {flip}")
        if not max_megapixels > 0:
            raise UsageError(f"max_megapixels must be above 0, got {max_megapixels}")
        if interpolation not in CHOICES:
            raise UsageError(f"interpolation is one of {', '.join(CHOICES)}, got {interpolation!r}")
        if not 0 <= color_jitter < math.inf:
            raise UsageError(f"color_jitter must be 0 or more, got {color_jitter}")
        self.interpolation: Choice = interpolation
        self.color_jitter = float(color_jitter)
        self.size = int(size)
        self.scale = (float(scale[0]), float(scale[1]))
        self.ratio = (float(ratio[0]), float(ratio[1]))
        self.flip = float(flip)
        self.max_megapixels = float(max_megapixels)
        self._log_ratio = (math.log(ratio[0]), math.log(ratio[1]))

    def __call__(
        self,
        data: bytes | Image.Image | torch.Tensor | np.ndarray,
        seed: int,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """uint8 [3, size, size] of one image, a function of its pixels and the 64-bit seed alone.

        Arguments:
            data: an encoded file, a Pillow image, or a uint8 tensor [3, H, W], [1, H, W] or [H, W].
            seed: 64-bit; the same seed may serve the mask, which draws from another stream.
            out: where to write, uint8 [3, size, size], C-contiguous.

        Raises BadImage for what cannot be decoded; TypeError and ValueError for the rest.
        """
        shape = (3, self.size, self.size)
        if out is None:
            out = np.empty(shape, dtype=np.uint8)
        elif out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise UsageError(f"out must be C-contiguous uint8 {shape}, got {out.dtype} {out.shape}")
        if isinstance(data, (bytes, bytearray, memoryview)):
            self._from_file(bytes(data), seed, out)
        elif isinstance(data, Image.Image):
            self._from_image(open_image(data, self.max_megapixels), seed, out)
        elif isinstance(data, torch.Tensor):
            self._from_image(Image.fromarray(tensor_pixels(data, self.max_megapixels)), seed, out)
        else:
            raise TypeError(
                f"an image must be bytes, a PIL image or a uint8 tensor, got {type(data)}"
            )
        return out

    def defer(self, data: object, seed: int, out: np.ndarray) -> tuple[int, ...] | None:
        """Writes a JPEG's own bytes to `out`, uint8 [3, size, size], for `DeviceDecoder`.

        Returns what that needs to know of it, (bytes, left, top, width, height, flip, number of the
        filter); None, with nothing written, where the crop has to be made here: another format, a
        rotated, damaged or large file, so many pixels that decoding all of them would fill the device,
        jittered colours. Raises BadImage for more than `max_megapixels`.
        """
        if self.color_jitter or not isinstance(data, bytes) or len(data) > out.nbytes:
            return None
        if not (info := jpeg_info(data)):
            return None
        width, height, orientation = info
        check_size(width, height, self.max_megapixels)
        if orientation != 1 or width * height > DEFERRED_PIXELS:
            return None
        out.reshape(-1)[: len(data)] = np.frombuffer(data, np.uint8)
        return (len(data), *self.box(width, height, seed), NUMBERS[self.filter(seed)])

    def filter(self, seed: int) -> Interpolation:
        """The filter that `seed` draws."""
        if self.interpolation != "random":
            return self.interpolation
        return RANDOM[mix64((seed ^ FILTER_STREAM) & MASK64) >> 63]

    def box(self, width: int, height: int, seed: int) -> Box:
        """The box that `seed` draws in an image of `width` x `height` pixels."""
        key = mix64((seed ^ STREAM) & MASK64)
        flip = (key >> 32) * HALF < self.flip
        low, high = self._log_ratio
        for n in range(10):
            draws = mix64(key + 2 * n + 1)  # two of 32 bits each
            share = self.scale[0] + (draws >> 32) * HALF * (self.scale[1] - self.scale[0])
            aspect = math.exp(low + (draws & LOWER) * HALF * (high - low))
            w = round(math.sqrt(share * width * height * aspect))
            h = round(math.sqrt(share * width * height / aspect))
            if 0 < w <= width and 0 < h <= height:
                draws = mix64(key + 2 * n + 2)
                left = (draws >> 32) * (width - w + 1) >> 32
                top = (draws & LOWER) * (height - h + 1) >> 32
                return Box(left, top, w, h, flip)
        w, h = width, height
        if width < self.ratio[0] * height:
            h = max(1, round(width / self.ratio[0]))
        elif width > self.ratio[1] * height:
            w = max(1, round(height * self.ratio[1]))
        return Box((width - w) // 2, (height - h) // 2, w, h, flip)

    def _blends(self, seed: int) -> np.ndarray | None:
        return draw_jitter(seed, self.color_jitter) if self.color_jitter else None

    def _from_image(self, image: Image.Image, seed: int, out: np.ndarray) -> None:
        self._from_pixels(Decoded(image, image.width, image.height), seed, out)

    def _from_file(self, data: bytes, seed: int, out: np.ndarray) -> None:
        if info := jpeg_info(data):
            width, height, orientation = info
            check_size(width, height, self.max_megapixels)
            upright = (height, width) if orientation >= 5 else (width, height)
            if self._from_jpeg(data, self.box(*upright, seed), info, seed, out):
                return

        def largest_divisor(width: int, height: int) -> float:
            return self._largest_divisor(self.box(width, height, seed))

        self._from_pixels(decode(data, largest_divisor, self.max_megapixels), seed, out)

    def _from_jpeg(
        self, data: bytes, box: Box, info: tuple[int, int, int], seed: int, out: np.ndarray
    ) -> bool:
        """The crop without Pillow; False: not handled. `box` is upright, `info` as stored."""
        width, height, orientation = info
        left, top, w, h = box.left, box.top, box.width, box.height
        divisor = next((d for d in (8, 4, 2) if d <= self._largest_divisor(box)), 1)
        drawn = self.filter(seed), self._blends(seed)
        if orientation == 1:
            return jpeg_crop(data, (left, top, w, h), divisor, self.size, box.flip, out, *drawn)
        # Stored to upright is a mirroring followed, for 5 to 8, by a transposition.
        mirror_x, mirror_y = orientation in (2, 3, 7, 8), orientation in (3, 4, 6, 7)
        if orientation >= 5:
            left, top, w, h = top, left, h, w
        left = width - left - w if mirror_x else left
        top = height - top - h if mirror_y else top
        if not jpeg_crop(data, (left, top, w, h), divisor, self.size, mirror_x, out, *drawn):
            return False
        crop = out[:, ::-1] if mirror_y else out
        if orientation >= 5:
            crop = crop.transpose(0, 2, 1)
        out[:] = (crop[:, :, ::-1] if box.flip else crop).copy()
        return True

    def _largest_divisor(self, box: Box) -> float:
        """How many times smaller a side an image may be decoded for the crop to lose nothing."""
        return min(box.width, box.height) / (DRAFT_MARGIN * self.size)

    def _from_pixels(self, decoded: Decoded, seed: int, out: np.ndarray) -> None:
        image, width, height, divisor = decoded
        box, interpolation = self.box(width, height, seed), self.filter(seed)
        blends = self._blends(seed)
        if blends is not None:
            image = jittered(image, blends)
        left, top = box.left / divisor, box.top / divisor
        right = min((box.left + box.width) / divisor, image.width)
        bottom = min((box.top + box.height) / divisor, image.height)
        x, y = int(left), int(top)
        corners = (x, y, math.ceil(right), math.ceil(bottom))
        factor = 1
        if (corners[2] - x) * (corners[3] - y) > LARGE:
            factor = max(1, int(self._largest_divisor(box) / divisor))
        if factor > 1:  # the means of squares: what a JPEG's smaller sizes are
            part = image.reduce(factor, corners)
        else:
            part = crop(image, *corners)
        inside = (
            (left - x) / factor, (top - y) / factor, (right - x) / factor, (bottom - y) / factor
        )  # fmt: skip
        if resize(np.asarray(part), inside, self.size, box.flip, out, interpolation):
            return
        part = part.resize((self.size, self.size), PILLOWS[interpolation], box=inside)
        pixels = np.asarray(part).transpose(2, 0, 1)
        out[:] = pixels[:, :, ::-1] if box.flip else pixels


def tensor_pixels(tensor: torch.Tensor, max_megapixels: float) -> np.ndarray:
    """uint8 [H, W, 3] of a uint8 tensor [3, H, W], [1, H, W] or [H, W]."""
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.dtype != torch.uint8 or tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise UsageError(
            "an image tensor must be uint8 [3, H, W], [1, H, W] or [H, W], got "
            f"{tensor.dtype} {list(tensor.shape)}"
        )
    check_size(tensor.shape[2], tensor.shape[1], max_megapixels)
    return np.ascontiguousarray(tensor.expand(3, -1, -1).permute(1, 2, 0).numpy())
