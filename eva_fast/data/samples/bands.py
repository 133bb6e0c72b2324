"""The image of a sample with other than three channels, or with more than 8 bits of each."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from eva_fast.data.decode.bands import read_bands
from eva_fast.data.decode.filters import Choice
from eva_fast.data.decode.limits import MAX_CHANNELS, MAX_MEGAPIXELS
from eva_fast.data.decode.pillow import PILLOWS
from eva_fast.data.samples.crop import Cropper
from eva_fast.data.samples.fields import Field
from eva_fast.data.sources.base import Item
from eva_fast.errors import UsageError


class BandsField(Field):
    """A crop of all channels, float32 [C, size, size], less `mean` and over `std` of each.

    The box and the mirroring are those that `ImageField` draws of the same seed; each channel is resized
    with Pillow's filter in float32. Files are read by `decode/bands.py`.

    Args:
        mean, std: C numbers each, in the units that files are scaled to.
        size, scale, ratio, flip, max_megapixels, interpolation: as for `Cropper`.
        fixed_seed: draws every crop with this seed instead of the sample's.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        size: int,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        *,
        max_megapixels: float = MAX_MEGAPIXELS,
        interpolation: Choice = "bicubic",
        fixed_seed: int | None = None,
        name: str = "images",
    ):
        channels = len(mean)
        if not 1 <= channels <= MAX_CHANNELS or len(std) != channels or min(std) <= 0:
            raise UsageError(
                f"mean and std are 1 to {MAX_CHANNELS} numbers each, std above 0; got {tuple(mean)} "
                f"and {tuple(std)}"
            )
        self.fixed_seed = fixed_seed
        self.cropper = Cropper(size, scale, ratio, flip, max_megapixels, interpolation)
        self.mean = np.asarray(mean, np.float32)[:, None, None]
        self.std = np.asarray(std, np.float32)[:, None, None]
        super().__init__(name, np.float32, (channels, self.cropper.size, self.cropper.size))

    @classmethod
    def centred(
        cls,
        mean: Sequence[float],
        std: Sequence[float],
        size: int,
        *,
        max_megapixels: float = MAX_MEGAPIXELS,
    ) -> "BandsField":
        """The largest centred square, resized: for evaluation."""
        whole = (1.0, 1.0)
        return cls(mean, std, size, whole, whole, 0.0, max_megapixels=max_megapixels, fixed_seed=0)

    def make(self, item: Item, seed: int, out: np.ndarray) -> None:
        cropper = self.cropper
        bands = read_bands(item.image, self.shape[0], cropper.max_megapixels)
        height, width = bands.shape[1:]
        seed = seed if self.fixed_seed is None else self.fixed_seed
        box = cropper.box(width, height, seed)
        part = bands[:, box.top : box.top + box.height, box.left : box.left + box.width]
        side, kind = (cropper.size, cropper.size), PILLOWS[cropper.filter(seed)]
        for channel, pixels in enumerate(part):
            image = Image.fromarray(np.ascontiguousarray(pixels))
            out[channel] = np.asarray(image.resize(side, kind))
        if box.flip:
            out[:] = out[:, :, ::-1].copy()
        np.subtract(out, self.mean, out=out)
        np.divide(out, self.std, out=out)
