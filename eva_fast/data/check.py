"""`eva-fast data check`: what a data set holds, what is wrong with it, and how fast it can be read."""

import collections
import functools
import io
import itertools
import math
import os
import time
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from eva_fast.data.check_report import render
from eva_fast.data.decode.pillow import BadImage
from eva_fast.data.loader.order import permute
from eva_fast.data.loader.streamfeed import has_stream
from eva_fast.data.progress import progress
from eva_fast.data.samples.crop import Cropper
from eva_fast.data.samples.mask import BlockMasker
from eva_fast.data.samples.seeds import sample_seed, sample_seeds
from eva_fast.data.sources.base import MixedSource, Source
from eva_fast.data.sources.open import open_source
from eva_fast.data.sources.streams import ShardStream
from eva_fast.errors import UsageError

__all__ = ["check", "render"]

_TIMED = 200  # images
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
    gpu_images_per_second: float | None = None,
    contact_sheet: str | os.PathLike | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Reads a data set the way training does and says what it found.

    Arguments:
        data, split: as for `open_source`.
        limit: images to decode, spread over the data set by chance; None decodes them all.
        image_size, patch_size, mask_ratio: of the samples timed and drawn.
        gpu_images_per_second: a training speed, to say how many cores feed it.
        contact_sheet: where to write a PNG of up to 24 crops beside their masks.
        seed: of the choice of images and of the crops.

    Returns a dict that can be written as JSON: `images`, `checked`, `bytes`, `width`, `height`,
    `formats`, `modes`, `labels`, `smaller_than_crop`, `unreadable_count`, `unreadable` (the first
    100: name and reason), `images_per_second_per_core`, `cores_needed`, `contact_sheet`.

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
    source = open_source(data, split)
    samples = _samples(source, limit, seed)
    side = image_size // patch_size
    masker = BlockMasker(
        (side, side), max(1, round(mask_ratio * side * side)), max(1, side * side // 16)
    )
    cropper = Cropper(image_size)
    good: list[tuple[int, str, Any]] = []
    tally = _Tally(image_size)
    look = functools.partial(_look, cropper=cropper)
    total = min(limit or len(source), len(source))
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress("reading", total) as show:
        for batch in _batches(samples, 256):
            for sample, seen in zip(batch, pool.map(look, batch)):
                tally.add(seen)
                if len(good) < _TIMED and "reason" not in seen:
                    good.append(sample)
            show(tally.checked)
    if not tally.checked:
        raise UsageError("no image found in the data")
    result = _summary(source, tally)
    rate = _images_per_second(good, cropper, masker, seed) if good else 0.0
    result["images_per_second_per_core"] = round(rate, 1)
    result["gpu_images_per_second"] = gpu_images_per_second
    needs = gpu_images_per_second and rate
    result["cores_needed"] = math.ceil(gpu_images_per_second / rate) if needs else None  # type: ignore[operator]
    result["contact_sheet"] = None
    if contact_sheet is not None and good:
        _draw(Path(contact_sheet), good[:24], cropper, masker, seed)
        result["contact_sheet"] = str(contact_sheet)
    return result


def _samples(source: Source, limit: int | None, seed: int) -> Iterator[tuple[int, str, Any]]:
    """(image id, name, data or the exception met) of up to `limit` images."""
    count = len(source) if limit is None else min(limit, len(source))
    if has_stream(source):
        streams = source.sources if isinstance(source, MixedSource) else [source]
        everything = limit is None or limit >= len(source)
        share = None if everything else -(-count // len(streams))
        for number, stream in enumerate(streams):
            if has_stream(stream):
                running = iter(ShardStream(stream, seed, 0, 1, number))  # type: ignore[arg-type]
                once_around = itertools.takewhile(lambda sample: sample.view == 0, running)
                for sample in itertools.islice(once_around, share):
                    yield sample.image_id, sample.name, sample.data
            else:
                yield from _samples(stream, share, seed)
        return
    for start in range(0, count, 1024):
        chosen = permute(len(source), seed, np.arange(start, min(start + 1024, count)))
        for image_id in chosen.tolist():
            try:
                data: Any = source.read(image_id)
            except Exception as error:  # told as the reason why the image is unreadable
                data = error
            yield image_id, source.name(image_id), data


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _look(sample: tuple[int, str, Any], cropper: Cropper) -> dict[str, Any]:
    """Format, mode, size in pixels and bytes of one image, or the reason why it is unreadable.

    Training may decode only the part of a file that a crop needs; here all of it is decoded too.
    """
    image_id, name, data = sample
    if isinstance(data, torch.Tensor):
        return {"format": "tensor", "mode": "", "size": (data.shape[-1], data.shape[-2])}
    try:
        if isinstance(data, Exception):
            raise data
        cropper(data, image_id)
        if isinstance(data, Image.Image):
            return {"format": data.format or "PIL image", "mode": data.mode, "size": data.size}
        with Image.open(io.BytesIO(data)) as image:
            seen = {"format": image.format, "mode": image.mode, "size": image.size}
            image.load()
    except BadImage as error:
        return {"name": name, "reason": error.reason}
    except Exception as error:  # Pillow's plugins raise nearly every type on damaged files
        return {"name": name, "reason": f"{type(error).__name__}: {error}"}
    return {**seen, "bytes": len(data)}


class _Tally:
    """What was seen, in 24 bytes an image: a whole data set may be checked."""

    def __init__(self, image_size: int):
        self.image_size = image_size
        self.checked = self.smaller_than_crop = self.unreadable_count = 0
        self.unreadable: list[dict[str, Any]] = []
        self.formats: collections.Counter[str] = collections.Counter()
        self.modes: collections.Counter[str] = collections.Counter()
        self.bytes, self.widths, self.heights = array("q"), array("q"), array("q")

    def add(self, seen: dict[str, Any]) -> None:
        self.checked += 1
        if "reason" in seen:
            self.unreadable_count += 1
            self.unreadable += [seen] * (len(self.unreadable) < _LISTED)
            return
        width, height = seen["size"]
        self.widths.append(width)
        self.heights.append(height)
        self.smaller_than_crop += min(width, height) < self.image_size
        self.formats[str(seen["format"])] += 1
        self.modes[seen["mode"]] += 1
        if "bytes" in seen:
            self.bytes.append(seen["bytes"])


def _summary(source: Source, tally: _Tally) -> dict[str, Any]:
    labels: collections.Counter[str] = collections.Counter()
    if not has_stream(source) and len(source) <= _LABELLED:
        labels.update(filter(None, map(source.label, range(len(source)))))
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
        "smaller_than_crop": tally.smaller_than_crop,
        "unreadable_count": tally.unreadable_count,
        "unreadable": tally.unreadable,
    }


def _spread(values: array) -> dict[str, float] | None:
    if not values:
        return None
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def _images_per_second(samples: list, cropper: Cropper, masker: BlockMasker, seed: int) -> float:
    """Samples made per second of one core's time (not of the clock: other work may be running)."""
    start = time.thread_time()
    for image_id, _, data in samples:
        cropper(data, sample_seed(seed, image_id, 0))
        masker.indices(sample_seeds(seed, np.array([image_id]), 0))
    return len(samples) / max(1e-9, time.thread_time() - start)


def _draw(path: Path, samples: list, cropper: Cropper, masker: BlockMasker, seed: int) -> None:
    """A grid of pairs: the crop, and the crop with its masked patches in grey."""
    size, pairs = cropper.size, 4
    rows = -(-len(samples) // pairs)
    sheet = Image.new("RGB", (pairs * (2 * size + 12), rows * (size + 6)), "white")
    height, width = masker.grid
    for place, (image_id, _, data) in enumerate(samples):
        crop = cropper(data, sample_seed(seed, image_id, 0))
        mask = masker.indices(sample_seeds(seed, np.array([image_id]), 0))[0]
        picture = Image.fromarray(crop.transpose(1, 2, 0))
        x, y = place % pairs * (2 * size + 12), place // pairs * (size + 6)
        sheet.paste(picture, (x, y))
        draw = ImageDraw.Draw(picture)
        step_y, step_x = size // height, size // width
        for index in mask.tolist():
            top, left = index // width * step_y, index % width * step_x
            draw.rectangle((left, top, left + step_x - 1, top + step_y - 1), fill=(128, 128, 128))
        sheet.paste(picture, (x + size + 2, y))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")
