"""Samples of a data set that `check` times and draws."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from eva_fast.data.loader.once import OnceStreamFeed
from eva_fast.data.loader.streamfeed import has_stream
from eva_fast.data.samples.fields import Field
from eva_fast.data.samples.mask import BlockMasker
from eva_fast.data.samples.seeds import sample_seed, sample_seeds
from eva_fast.data.sources.base import Item, Picture, Source, Subset
from eva_fast.files import atomic_write

_PAIRS = 4  # in a row of the contact sheet

Images = list[tuple[int, Picture]]  # (image id, image)


def images(source: Source, ids: list[int], seed: int, limit: int | None) -> Images:
    """The images `ids` of a source, or of the once-through order of a stream, read again."""
    if not has_stream(source):
        numbers = source.numbers if isinstance(source, Subset) else range(len(source))
        return [(numbers[number], source.read(number)) for number in ids]
    wanted, found = set(ids), []
    feed = OnceStreamFeed(source, seed=seed, batch_size=1, rank=0, world=1, limit=limit)
    for sample in feed.samples():
        if sample.image_id in wanted and not isinstance(sample.item, Exception):
            found.append((sample.image_id, sample.item.image))
        if len(found) == len(ids):
            break
    return found


def images_per_second(samples: Images, crop: Field, masker: BlockMasker, seed: int) -> float:
    """Samples made per second of one core's time (not of the clock: other work may be running)."""
    start = time.thread_time()
    for image_id, data in samples:
        _make(image_id, data, crop, masker, seed)
    return len(samples) / max(1e-9, time.thread_time() - start)


def draw(path: Path, samples: Images, crop: Field, masker: BlockMasker, seed: int) -> None:
    """A PNG with a grid of pairs: the crop, and the crop with its masked patches in grey."""
    size = crop.shape[-1]
    rows = -(-len(samples) // _PAIRS)
    sheet = Image.new("RGB", (_PAIRS * (2 * size + 12), rows * (size + 6)), "white")
    height, width = masker.grid
    step_y, step_x = size // height, size // width
    for place, (image_id, data) in enumerate(samples):
        pixels, mask = _make(image_id, data, crop, masker, seed)
        picture = Image.fromarray(_colours(pixels).transpose(1, 2, 0))
        x, y = place % _PAIRS * (2 * size + 12), place // _PAIRS * (size + 6)
        sheet.paste(picture, (x, y))
        pen = ImageDraw.Draw(picture)
        for index in mask.tolist():
            top, left = index // width * step_y, index % width * step_x
            pen.rectangle((left, top, left + step_x - 1, top + step_y - 1), fill=(128, 128, 128))
        sheet.paste(picture, (x + size + 2, y))
    with atomic_write(path) as draft:
        sheet.save(draft, "PNG")


def _colours(pixels: np.ndarray) -> np.ndarray:
    """uint8 [3,S,S] of a crop: bytes as they are; of floats the first three channels, or one as grey, or
    two as red and green, each from its darkest to its brightest."""
    if pixels.dtype == np.uint8:
        return pixels
    shown = pixels[:3] if len(pixels) > 1 else pixels.repeat(3, axis=0)
    low = shown.min(axis=(1, 2), keepdims=True)
    unit = (shown - low) / np.maximum(shown.max(axis=(1, 2), keepdims=True) - low, 1e-12)
    colours = np.zeros((3, *pixels.shape[1:]), np.uint8)
    colours[: len(unit)] = np.rint(unit * 255)
    return colours


def _make(image_id: int, data: Any, field: Field, masker: BlockMasker, seed: int) -> Any:
    crop = np.empty(field.shape, field.dtype)
    field.make(Item(image=data), sample_seed(seed, image_id, 0), crop)
    return crop, masker.indices(sample_seeds(seed, np.array([image_id]), 0))[0]
