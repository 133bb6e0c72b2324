"""The one crop of an image that student and teacher share: random, resized, perhaps flipped."""

import dataclasses
import math
import random

import numpy as np
import torch
from PIL import Image

from eva_fast.data.decode import BadImage, check_size, decode_with_pillow, to_rgb

STREAM = 0x63726F705F666C70  # sets the crop's draws apart from the mask's, for the same seed


@dataclasses.dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of an image, in pixels, and whether to mirror it left to right."""

    left: int
    top: int
    width: int
    height: int
    flip: bool


class Cropper:
    """Random resized crop with a horizontal flip, as torchvision's RandomResizedCrop draws it.

    The box: area uniform in `scale` times the image's, aspect ratio (width / height) log-uniform in
    `ratio`, uniform position; after ten tries that do not fit, the largest centred box within
    `ratio`. It is resized with Pillow's antialiased bicubic filter to `size` x `size` and mirrored
    with probability `flip`.

    Raises ValueError for arguments out of range.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
    ) -> None:
        if size < 1:
            raise ValueError(f"crop size must be at least 1 pixel, got {size}")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be 0 < low <= high <= 1, got {tuple(scale)}")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio must be 0 < low <= high, got {tuple(ratio)}")
        if not 0 <= flip <= 1:
            raise ValueError(f"flip must be a probability, got {flip}")
        self.size = int(size)
        self.scale = (float(scale[0]), float(scale[1]))
        self.ratio = (float(ratio[0]), float(ratio[1]))
        self.flip = float(flip)

    def __call__(
        self,
        data: bytes | Image.Image | torch.Tensor,
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
            raise ValueError(
                f"out must be C-contiguous uint8 {shape}, got {out.dtype} {out.shape}"
            )
        image = _open(data)
        box = self.box(image.width, image.height, seed)
        part = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        part = part.resize((self.size, self.size), Image.Resampling.BICUBIC)
        pixels = np.asarray(part)[:, ::-1] if box.flip else np.asarray(part)
        out[:] = pixels.transpose(2, 0, 1)
        return out

    def box(self, width: int, height: int, seed: int) -> Box:
        """The box that `seed` draws in an image of `width` x `height` pixels."""
        draws = random.Random((seed % (1 << 64)) ^ STREAM)
        flip = draws.random() < self.flip
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            share = self.scale[0] + draws.random() * (self.scale[1] - self.scale[0])
            area = share * width * height
            aspect = math.exp(low + draws.random() * (high - low))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            x, y = draws.random(), draws.random()
            if 0 < w <= width and 0 < h <= height:
                return Box(int(x * (width - w + 1)), int(y * (height - h + 1)), w, h, flip)
        w, h = width, height
        if width < self.ratio[0] * height:
            h = max(1, round(width / self.ratio[0]))
        elif width > self.ratio[1] * height:
            w = max(1, round(height * self.ratio[1]))
        return Box((width - w) // 2, (height - h) // 2, w, h, flip)


def _open(data: bytes | Image.Image | torch.Tensor) -> Image.Image:
    if isinstance(data, (bytes, bytearray, memoryview)):
        return decode_with_pillow(bytes(data))
    if isinstance(data, Image.Image):
        check_size(data.width, data.height)
        try:
            return to_rgb(data.copy())
        except Exception as error:
            raise BadImage(f"{type(error).__name__}: {error}"[:200]) from error
    if isinstance(data, torch.Tensor):
        return Image.fromarray(_tensor_pixels(data))
    raise TypeError(f"an image must be bytes, a PIL image or a uint8 tensor, got {type(data)}")


def _tensor_pixels(tensor: torch.Tensor) -> np.ndarray:
    """uint8 [H, W, 3] of a uint8 tensor [3, H, W], [1, H, W] or [H, W]."""
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.dtype != torch.uint8 or tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise ValueError(
            "an image tensor must be uint8 [3, H, W], [1, H, W] or [H, W], got "
            f"{tensor.dtype} {list(tensor.shape)}"
        )
    check_size(tensor.shape[2], tensor.shape[1])
    return np.ascontiguousarray(tensor.expand(3, -1, -1).permute(1, 2, 0).numpy())
