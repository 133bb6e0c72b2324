"""Options of the data: what is read, how it is cropped, by whom it is decoded."""

import math
from dataclasses import dataclass
from typing import Literal

from eva_fast.data.decode.filters import CHOICES, Choice
from eva_fast.data.decode.limits import MAX_CHANNELS, MAX_MEGAPIXELS
from eva_fast.options import TextOrObject, option, require


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Data."""

    data: TextOrObject = "builtin"
    """builtin (2,154 drawings), a folder, several with weights (a:0.7,b:0.3), a text file of
    paths, tar shards (shard-{000..123}.tar); from Python also any map-style dataset."""
    data_moved: bool = option(False, resume=True)
    """The run goes on with the same data in another place; only needed where the names of the images
    and the bytes of some do not tell that it is the same."""
    channels: int = 3
    """Channels of the images, 1 to 16. Other than three are read from .npy arrays, multi-page and
    multi-band TIFF and whatever else has so many, as float32; whole numbers are scaled to 0..1 by their
    type (docs/channels.md)."""
    mean: tuple[float, ...] | None = None
    """With other than three channels: what is taken off each, in the scaled units; by default 0.5."""
    std: tuple[float, ...] | None = None
    """With other than three channels: what each is divided by; by default 0.5."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Share of an image's area that a crop covers, from and to; for fd by default from 0.67."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect of a crop, from and to."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float | None = None
    """How far brightness, contrast and saturation of each image are changed before its crop, for both
    student and teacher: factors are from 1 - color_jitter to 1 + color_jitter. By default 0, for tokens
    0.4."""
    interpolation: Choice | None = None
    """Filter that crops are resized with: bicubic, bilinear, lanczos, hamming, or random (bilinear or
    bicubic, drawn for each crop); by default bicubic, for fd bilinear."""
    teacher_interpolation: Choice | None = None
    """Filter of the teacher's crops, if other than the student's: each image is then read twice."""
    workers: int | None = option(None, resume=True)
    """Processes that decode images; by default as many as fit the machine."""
    decode: Literal["cpu", "gpu"] = "cpu"
    """Where JPEGs are decoded: in the workers, or on the NVIDIA GPU through nvJPEG."""
    max_megapixels: float = option(MAX_MEGAPIXELS, resume=True)
    """Images of more million pixels are refused: decompression bombs. Cameras reach about 200; a
    worker takes up to 12 bytes a pixel for formats other than JPEG."""
    max_bad_share: float = option(0.05, resume=True)
    """Stop when more than this share of the images cannot be read."""

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std) of each of other than three channels."""
        usual = (0.5,) * self.channels
        return self.mean or usual, self.std or usual

    @property
    def is_builtin(self) -> bool:
        """Whether the data is the drawings in the package."""
        return isinstance(self.data, str) and self.data == "builtin"  # an array compares each item

    def __post_init__(self):
        self._check_channels()
        low, high = self.crop_scale
        require(0 < low <= high <= 1, f"crop_scale must be 0 < from <= to <= 1, got {low} {high}")
        low, high = self.crop_ratio
        require(0 < low <= high, f"crop_ratio must be 0 < from <= to, got {low} {high}")
        require(0 <= self.flip <= 1, f"flip is a probability, got {self.flip}")
        require(
            self.workers is None or self.workers >= 0,
            f"workers must be 0 (in this process) or more, got {self.workers}",
        )
        require(self.decode in ("cpu", "gpu"), f"decode is cpu or gpu, got {self.decode!r}")
        self._check_crops()
        require(
            self.max_megapixels > 0, f"max_megapixels must be above 0, got {self.max_megapixels}"
        )
        require(
            0 <= self.max_bad_share <= 1,
            f"max_bad_share must be in [0, 1], got {self.max_bad_share}",
        )

    def _check_crops(self) -> None:
        jitter = self.color_jitter or 0.0
        require(0 <= jitter < math.inf, f"color_jitter must be 0 or more, got {jitter}")
        require(
            jitter == 0 or self.channels == 3,
            f"color_jitter is of images with three channels, not {self.channels}: leave it out",
        )
        for name in ("interpolation", "teacher_interpolation"):
            given = getattr(self, name)
            require(
                given is None or given in CHOICES,
                f"{name} is one of {', '.join(CHOICES)}, got {given!r}",
            )

    def _check_channels(self) -> None:
        count = self.channels
        require(1 <= count <= MAX_CHANNELS, f"channels must be 1 to {MAX_CHANNELS}, got {count}")
        for name in ("mean", "std"):
            given = getattr(self, name)
            require(
                given is None or count != 3,
                f"{name} is of images with other than three channels: those with three are "
                "normalised as the model's own weights expect",
            )
            require(
                given is None or len(given) == count,
                f"{name} needs a number for each of the {count} channels, got {given}",
            )
        require(self.std is None or min(self.std) > 0, f"std must be above 0, got {self.std}")
        require(
            count == 3 or self.decode == "cpu",
            f"decode='gpu' is of JPEGs with three channels, not of images with {count}",
        )
