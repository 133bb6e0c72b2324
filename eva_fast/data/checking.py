"""`eva-fast data check`: what a data set holds, what is wrong with it, and how fast it can be read."""

import collections
import json
import math
import os
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from eva_fast.data.check_report import render
from eva_fast.data.check_samples import draw, images, images_per_second
from eva_fast.data.config import DataConfig
from eva_fast.data.decode.bands import kind_of, read_bands
from eva_fast.data.decode.formats import reading_arrays
from eva_fast.data.decode.limits import MAX_MEGAPIXELS
from eva_fast.data.decode.pillow import look
from eva_fast.data.loader.loader import build_loader
from eva_fast.data.loader.maker import Bad
from eva_fast.data.loader.order import permute
from eva_fast.data.loader.streamfeed import flat, has_stream
from eva_fast.data.progress import progress
from eva_fast.data.samples.bands import BandsField
from eva_fast.data.samples.fields import Field
from eva_fast.data.samples.image import ImageField
from eva_fast.data.samples.mask import BlockMasker
from eva_fast.data.sources.base import Item, Source, Subset
from eva_fast.data.sources.mixed import MixedSource
from eva_fast.data.sources.open import open_source
from eva_fast.errors import UsageError
from eva_fast.files import cpu_count, writing_to

__all__ = ["check", "render"]

_BATCH = 64
_TIMED, _DRAWN = 200, 24  # images
_LISTED = 100  # unreadable images named in the result
_LABELLED = 100_000  # images whose labels are counted; more would take minutes


def check(
    data: Any,
    *,
    split: str = "train",
    limit: int | None = 10_000,
    image_size: int = 224,
    patch_size: int = 14,
    mask_ratio: float = 105 / 256,
    channels: int = 3,
    max_megapixels: float = MAX_MEGAPIXELS,
    gpu_images_per_second: float | None = None,
    contact_sheet: str | os.PathLike | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Reads a data set the way training does and says what it found.

    Arguments:
        data, split: as for `open_source`.
        limit: images to decode, spread over the data set by chance; None decodes them all.
        image_size, patch_size, mask_ratio: of the samples timed and drawn.
        channels: of the images, as training has it: others count as unreadable, and where it is not 3
            arrays (.npy) and the bands of TIFF are images.
        max_megapixels: images of more million pixels count as unreadable, as in training.
        gpu_images_per_second: a training speed, to say how many cores feed it.
        contact_sheet: where to write a PNG of up to 24 crops beside their masks.
        seed: of the choice of images and of the crops.

    Returns a dict that can be written as JSON: `images`, `checked`, `bytes`, `width`, `height`,
    `formats`, `modes`, `labels` (of all images, or of those read where only they tell),
    `left_out` (what lies beside the images and is not read: {suffix or kind: how many}),
    `smaller_than_crop`, `unreadable_count`, `unreadable` (the first 100: name and reason),
    `images_per_second_per_core`, `cores_needed`, `contact_sheet`.

    Raises what `open_source` raises, and ValueError for numbers that make no sense.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1 image, got {limit}")
    if patch_size < 1 or image_size < 1 or image_size % patch_size:
        raise UsageError(f"image_size {image_size} must be a multiple of patch_size {patch_size}")
    if gpu_images_per_second is not None and not gpu_images_per_second > 0:
        raise UsageError(f"gpu_images_per_second must be above 0, got {gpu_images_per_second}")
    if contact_sheet is not None and Path(contact_sheet).is_dir():
        raise UsageError(f"contact_sheet must be a file to write, {contact_sheet} is a folder")
    prepared = DataConfig(channels=channels)
    side = image_size // patch_size
    masker = BlockMasker(
        (side, side), max(1, round(mask_ratio * side * side)), max(1, side * side // 16)
    )
    crop: ImageField | BandsField = (
        ImageField(image_size, max_megapixels=max_megapixels)
        if channels == 3
        else BandsField(*prepared.statistics, image_size, max_megapixels=max_megapixels)
    )
    with reading_arrays(channels != 3):
        result = _found(open_source(data, split), limit, crop, masker, seed, contact_sheet)
    rate = result["images_per_second_per_core"]
    result["gpu_images_per_second"] = gpu_images_per_second
    needs = gpu_images_per_second and rate
    result["cores_needed"] = math.ceil(gpu_images_per_second / rate) if needs else None  # type: ignore[operator]
    return result


def _found(
    source: Source, limit: int | None, crop: "ImageField | BandsField", masker: BlockMasker, seed: int,
    contact_sheet: str | os.PathLike | None,
) -> dict[str, Any]:  # fmt: skip
    """What `check` says of the images alone."""
    chosen, share = _spread_by_chance(source, limit, seed)
    tally = _read(chosen, share, crop, seed, total=min(limit or len(source), len(source)))
    if not tally.checked:
        raise UsageError("no image found in the data")
    result = _summary(source, tally)
    good = images(chosen, tally.good, seed, share)
    rate = images_per_second(good, crop, masker, seed) if good else 0.0
    result["images_per_second_per_core"] = round(rate, 1)
    result["contact_sheet"] = None
    if contact_sheet is not None and good:
        with writing_to(contact_sheet, "contact_sheet"):
            draw(Path(contact_sheet), good[:_DRAWN], crop, masker, seed)
        result["contact_sheet"] = str(contact_sheet)
    return result


def _spread_by_chance(source: Source, limit: int | None, seed: int) -> tuple[Source, int | None]:
    """The images to read, in the order to read them, and how many of each stream among them."""
    count = len(source) if limit is None else min(limit, len(source))
    if not has_stream(source):
        return Subset(source, _Permuted(len(source), count, seed)), None
    sources = flat(source)
    share = None if count == len(source) else -(-count // len(sources))
    parts = [s if has_stream(s) else _spread_by_chance(s, share, seed)[0] for s in sources]
    return MixedSource(parts), share


class _Permuted:
    """The first `length` elements of a permutation of range(`count`), worked out where asked for."""

    _BLOCK = 256

    def __init__(self, count: int, length: int, key: int):
        self.count, self.length, self.key = count, length, key
        self._block, self._values = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> int:
        block, inside = divmod(position, self._BLOCK)
        if block != self._block:
            first = block * self._BLOCK
            positions = np.arange(first, min(first + self._BLOCK, self.length))
            self._block, self._values = block, permute(self.count, self.key, positions)
        return int(self._values[inside])


class _Seen(Field):
    """What an image's file is, as JSON: format, mode, size in pixels, bytes, label.

    Training may decode only the part of a file that a crop needs; here all of it is decoded too.
    """

    def __init__(self, max_megapixels: float, channels: int) -> None:
        super().__init__("seen", np.uint8, most=4096, on_device=False)
        self.max_megapixels, self.channels = max_megapixels, channels

    def make(self, item: Item, seed: int, out: np.ndarray) -> int:
        label = item.get("label")
        seen = self._look(item.image) | {"label": None if label is None else str(label)}
        raw = json.dumps(seen).encode()
        out[: len(raw)] = np.frombuffer(raw, np.uint8)
        return len(raw)

    def _look(self, data: Any) -> dict[str, Any]:
        if isinstance(data, torch.Tensor):
            return {"format": "tensor", "mode": "", "size": (data.shape[-1], data.shape[-2])}
        if isinstance(data, Image.Image):
            return {"format": data.format or "PIL image", "mode": data.mode, "size": data.size}
        if self.channels != 3:
            bands = read_bands(data, self.channels, self.max_megapixels)
            size = bands.shape[:0:-1]
            return {"format": kind_of(data), "mode": "", "size": size, "bytes": len(data)}
        form, mode, size = look(data, self.max_megapixels)
        return {"format": form, "mode": mode, "size": size, "bytes": len(data)}


class _Tally:
    """What was seen, in 24 bytes an image: a whole data set may be checked."""

    def __init__(self, image_size: int):
        self.image_size = image_size
        self.checked = self.smaller_than_crop = self.unreadable_count = 0
        self.unreadable: list[dict[str, Any]] = []
        self.good: list[int] = []  # ids of the first readable ones
        self.formats: collections.Counter[str] = collections.Counter()
        self.modes: collections.Counter[str] = collections.Counter()
        self.labels: collections.Counter[str] = collections.Counter()
        self.bytes, self.widths, self.heights = array("q"), array("q"), array("q")

    def add(self, image_id: int, seen: dict[str, Any]) -> None:
        self.checked += 1
        if len(self.good) < _TIMED:
            self.good.append(image_id)
        width, height = seen["size"]
        self.widths.append(width)
        self.heights.append(height)
        self.smaller_than_crop += min(width, height) < self.image_size
        self.formats[str(seen["format"])] += 1
        self.modes[seen["mode"]] += 1
        if "bytes" in seen:
            self.bytes.append(seen["bytes"])
        if seen["label"] is not None:
            self.labels[seen["label"]] += 1

    def add_bad(self, bad: Bad) -> None:
        self.checked += 1
        self.unreadable_count += 1
        if len(self.unreadable) < _LISTED:
            self.unreadable.append({"name": bad.name, "reason": bad.reason})


def _read(
    source: Source, share: int | None, crop: ImageField | BandsField, seed: int, total: int
) -> _Tally:
    """Every image of `source` once, through the loader that training uses."""
    tally = _Tally(crop.cropper.size)
    loader = build_loader(
        source, [crop, _Seen(crop.cropper.max_megapixels, crop.shape[0])], batch_size=_BATCH, seed=seed,
        order="once", limit=share, workers=min(cpu_count(), total // 16),
        on_bad=tally.add_bad, max_bad_fraction=1.0,
    )  # fmt: skip
    with loader, progress("reading", total) as show:
        for batch in loader:
            for image_id, seen in zip(batch.ids.tolist(), batch.seen.texts()):
                tally.add(image_id, json.loads(seen))
            show(tally.checked)
    return tally


def _summary(source: Source, tally: _Tally) -> dict[str, Any]:
    labels: collections.Counter[str] = collections.Counter()
    if not has_stream(source) and len(source) <= _LABELLED:
        labels = tally.labels
        if source.knows_labels:
            labels = collections.Counter(filter(None, map(source.label, range(len(source)))))
    sizes = tally.bytes
    return {
        "images": len(source),
        "checked": tally.checked,
        "bytes": _spread(sizes),
        "total_bytes_estimate": round(sum(sizes) / len(sizes) * len(source)) if sizes else None,
        "width": _spread(tally.widths),
        "height": _spread(tally.heights),
        "formats": dict(tally.formats.most_common()),
        "modes": dict(tally.modes.most_common()),
        "labels": dict(labels.most_common()),
        "left_out": dict(source.left_out),
        "smaller_than_crop": tally.smaller_than_crop,
        "unreadable_count": tally.unreadable_count,
        "unreadable": tally.unreadable,
    }


def _spread(values: array) -> dict[str, float] | None:
    if not values:
        return None
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}
