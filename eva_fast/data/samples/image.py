"""The image of a sample: the one crop that student and teacher share."""

import numpy as np
import torch

from eva_fast.data.decode.device import DeviceDecoder
from eva_fast.data.decode.filters import Choice
from eva_fast.data.decode.limits import MAX_MEGAPIXELS
from eva_fast.data.samples.crop import Cropper
from eva_fast.data.samples.fields import Field, Rows
from eva_fast.data.sources.base import Item
from eva_fast.errors import UsageError


class ImageField(Field):
    """A crop, uint8 [3, size, size], not normalised; arguments as for `Cropper`.

    fixed_seed: draws every crop with this seed instead of the sample's.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        *,
        max_megapixels: float = MAX_MEGAPIXELS,
        interpolation: Choice = "bicubic",
        color_jitter: float = 0.0,
        fixed_seed: int | None = None,
        name: str = "images",
    ):
        self.fixed_seed = fixed_seed
        self.cropper = Cropper(
            size, scale, ratio, flip, max_megapixels, interpolation, color_jitter
        )
        super().__init__(name, np.uint8, (3, self.cropper.size, self.cropper.size))

    @classmethod
    def centred(
        cls, size: int, *, max_megapixels: float = MAX_MEGAPIXELS, name: str = "images"
    ) -> "ImageField":
        """The largest centred square, resized: for evaluation."""
        whole = (1.0, 1.0)  # of two sides that differ by a pixel, the seed says which end is cut
        return cls(size, whole, whole, 0.0, max_megapixels=max_megapixels, fixed_seed=0, name=name)

    def make(self, item: Item, seed: int, out: np.ndarray) -> None:
        self.cropper(item.image, seed if self.fixed_seed is None else self.fixed_seed, out=out)

    def decoded_on(self, device: torch.device) -> Field:
        cropper = self.cropper
        if cropper.color_jitter:
            raise UsageError(
                "decode='gpu' has no colour jitter, which needs all of an image: use decode='cpu', or "
                "color_jitter=0"
            )
        return _DeferredImage(self, DeviceDecoder(device, cropper.size, cropper.max_megapixels))


class _DeferredImage(Field):
    """An image field of which JPEGs are decoded on the device (`decode/device.py`).

    A worker writes a file's bytes where its crop would go, and to a companion what
    `Cropper.defer` says of it, or zeros where the crop is made already.
    """

    def __init__(self, field: ImageField, decoder: DeviceDecoder):
        super().__init__(field.name, field.dtype, field.shape)
        self.field = field
        self.decoder = decoder
        self.encoded = f"{field.name}.encoded"
        self.companions = (Field(self.encoded, np.int32, (7,)),)

    def write(self, item: Item, seed: int, rows: Rows, row: int) -> None:
        out = rows[self.name][row]
        seed = seed if self.field.fixed_seed is None else self.field.fixed_seed
        deferred = self.field.cropper.defer(item.image, seed, out)
        if deferred is None:
            self.field.make(item, seed, out)
        rows[self.encoded][row] = deferred or 0

    def complete(self, values: torch.Tensor, rows: Rows) -> dict[int, str]:
        return self.decoder.fill(values, rows[self.name], rows[self.encoded])
