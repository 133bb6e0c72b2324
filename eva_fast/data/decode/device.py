"""`decode="gpu"`: JPEGs decoded and cropped on the training device, by nvJPEG through torchvision.

A worker then only reads: it writes a JPEG's bytes where its crop would go (most files are smaller)
and notes the box. What this cannot serve, other formats, rotated, large or damaged files, is
cropped by the worker as always. The trainer's thread starts the decoding beside the running step.
"""

import io
import logging
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eva_fast.data.decode.box import Box
from eva_fast.data.decode.filters import NUMBERS, Interpolation
from eva_fast.data.decode.limits import MAX_MEGAPIXELS
from eva_fast.data.decode.pillow import PILLOWS, BadImage, decode
from eva_fast.data.decode.resize import resize
from eva_fast.errors import UsageError

logger = logging.getLogger(__name__)


class Deferred(NamedTuple):
    """A row whose image is still encoded."""

    row: int
    data: Tensor
    """uint8 [bytes]."""
    box: Box
    interpolation: Interpolation


class DeviceDecoder:
    """Decodes deferred rows on `device` and puts the crops, of `size` pixels, in their place.

    Raises ValueError where torchvision cannot decode JPEGs on that device.
    """

    def __init__(
        self,
        device: torch.device,
        size: int,
        max_megapixels: float = MAX_MEGAPIXELS,
    ) -> None:
        self.device, self.size, self.max_megapixels = device, size, max_megapixels
        try:
            self._decode([_sample()])
        except Exception as error:  # a missing library, driver or build option
            raise UsageError(
                'decode="gpu" needs an NVIDIA GPU and a torchvision built with nvJPEG: '
                f'{" ".join(str(error).split())[:200]}. decode="cpu" works everywhere'
            ) from error

    def fill(self, images: Tensor, files: np.ndarray, encoded: np.ndarray) -> dict[int, str]:
        """Replaces the deferred rows of `images`, uint8 [B,3,S,S] on the device.

        Arguments:
            files: uint8 [B,3,S,S] on the host: a deferred row begins with its file's bytes.
            encoded: int32 [B,7]: (bytes, left, top, width, height, flip, number of the filter), or zeros
                for other rows.

        Returns the rows that neither the device nor the CPU can decode, with the reason of each.
        """
        deferred = []
        for row, (size, left, top, width, height, flip, number) in enumerate(encoded.tolist()):
            if size:
                data = torch.from_numpy(files[row].reshape(-1)[:size])
                box = Box(left, top, width, height, bool(flip))
                deferred.append(Deferred(row, data, box, tuple(NUMBERS)[number]))
        if not deferred:
            return {}
        try:
            pictures = self._decode([d.data for d in deferred])
        except RuntimeError as error:
            logger.warning("a batch is decoded by the CPU: %s", " ".join(str(error).split())[:200])
            return self._by_cpu(images, deferred)
        for interpolation in sorted({d.interpolation for d in deferred}):
            chosen = [
                (d, p) for d, p in zip(deferred, pictures) if d.interpolation == interpolation
            ]
            parts = [
                p[:, d.box.top : d.box.top + d.box.height, d.box.left : d.box.left + d.box.width]
                for d, p in chosen
            ]
            rows = torch.tensor([d.row for d, _ in chosen]).to(images.device, non_blocking=True)
            flips = [d.box.flip for d, _ in chosen]
            images[rows] = resize(parts, flips, self.size, interpolation)
        return {}

    def _decode(self, encoded: list[Tensor]) -> list[Tensor]:
        from torchvision.io import ImageReadMode, decode_jpeg

        return decode_jpeg(encoded, mode=ImageReadMode.RGB, device=self.device)

    def _by_cpu(self, images: Tensor, deferred: list[Deferred]) -> dict[int, str]:
        bad = {}
        for d in deferred:
            try:
                crop = self._cpu_crop(d)
            except BadImage as error:
                bad[d.row] = error.reason
            else:
                images[d.row] = crop.to(self.device)
        return bad

    def _cpu_crop(self, deferred: Deferred) -> Tensor:
        """uint8 [3, size, size] by Pillow; BadImage where it cannot decode the file either."""
        data, box = deferred.data.numpy().tobytes(), deferred.box
        image = decode(data, max_megapixels=self.max_megapixels).image
        part = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        part = part.resize((self.size, self.size), PILLOWS[deferred.interpolation])
        crop = torch.from_numpy(np.array(part)).permute(2, 0, 1)
        return crop.flip(-1) if box.flip else crop


def _sample() -> Tensor:
    """A small JPEG, uint8 [bytes]."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
