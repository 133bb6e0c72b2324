"""Images with classes, as two splits: one to fit a probe on, one to judge it."""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eva_fast.data import open_source
from eva_fast.data.decode.pillow import BadImage
from eva_fast.data.samples.crop import Cropper
from eva_fast.data.sources.base import Source
from eva_fast.errors import UsageError

log = logging.getLogger(__name__)
VALIDATION_SHARE = 0.25
SPLIT_SEED = 0


@dataclass(frozen=True)
class Split:
    """Some images of a source, by number, and the class of each as an index into `classes`."""

    source: Source
    numbers: Sequence[int]
    labels: Sequence[int]
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.numbers)

    def batches(self, size: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(uint8 images [b,3,size,size], int64 labels [b]) in order: the largest centred square,
        resized with an antialiased bicubic filter. Unreadable images are left out and logged."""
        cropper = Cropper(size, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)

        def load(number: int) -> np.ndarray | None:
            try:
                return cropper(self.source.read(number), 0)
            except (BadImage, OSError) as error:
                log.warning("left out %s: %s", self.source.name(number), error)
                return None

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for start in range(0, len(self), batch_size):
                loaded = pool.map(load, self.numbers[start : start + batch_size])
                labels = self.labels[start : start + batch_size]
                kept = [(image, label) for image, label in zip(loaded, labels) if image is not None]
                if kept:
                    images = torch.from_numpy(np.stack([image for image, _ in kept]))
                    yield images, torch.tensor([label for _, label in kept])


def open_splits(data: Any) -> tuple[Split, Split]:
    """(training split, validation split) of labelled images.

    Args:
        data: "builtin"; a folder with train/ and val/ that hold a folder a class; or anything else
            that `open_source` opens and that has labels, of which a fixed quarter of every class is
            for validation.

    Raises:
        ValueError: no labels, fewer than two classes, or validation classes that training lacks.
    """
    sources = _ready_splits(data)
    if sources is None:
        source = open_source(data)
        labels = _labels(source, data)
        classes = _classes(labels.values(), data)
        numbers = np.array(list(labels))
        indices = np.array([classes.index(name) for name in labels.values()])
        for_val = _stratified(indices)
        train, val = (
            Split(source, numbers[part].tolist(), indices[part].tolist(), classes)
            for part in (~for_val, for_val)
        )
        if not len(val):
            raise UsageError(f"{data} has one image a class: nothing is left for validation")
        return train, val
    known = [_labels(source, data) for source in sources]
    classes = _classes(known[0].values(), data)
    strange = sorted(set(known[1].values()) - set(classes))
    if strange:
        raise UsageError(
            f"val of {data} has classes that train lacks: {', '.join(strange[:5])}; "
            f"train has {', '.join(classes[:20])}"
        )
    train, val = (
        Split(source, list(labels), [classes.index(name) for name in labels.values()], classes)
        for source, labels in zip(sources, known)
    )
    return train, val


def _ready_splits(data: Any) -> tuple[Source, Source] | None:
    if data == "builtin":
        return open_source(data, split="train"), open_source(data, split="val")
    if isinstance(data, str | Path):
        train, val = Path(data) / "train", Path(data) / "val"
        if train.is_dir() and val.is_dir():
            return open_source(str(train)), open_source(str(val))
    return None


def _labels(source: Source, data: Any) -> dict[int, str]:
    """Class of every image that has one, by number, in order."""
    found = {i: label for i in range(len(source)) if (label := source.label(i)) is not None}
    if not found:
        raise UsageError(
            f"the images of {data} have no classes: evaluation needs a folder a class, "
            "or train/ and val/ with such folders"
        )
    if len(found) < len(source):
        log.warning("%d of %d images have no class and are left out", len(source) - len(found),
                    len(source))  # fmt: skip
    return found


def _classes(labels: Any, data: Any) -> list[str]:
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise UsageError(
            f"all images of {data} are of one class ({classes[0]}): a probe needs at least two"
        )
    return classes


def _stratified(indices: np.ndarray) -> np.ndarray:
    """Which images are for validation, bool [n]: a quarter of every class, at least one of two."""
    draws = np.random.default_rng(SPLIT_SEED)
    chosen = np.zeros(len(indices), dtype=bool)
    for index in np.unique(indices):
        members = draws.permutation(np.flatnonzero(indices == index))
        count = max(round(VALIDATION_SHARE * len(members)), 1) if len(members) > 1 else 0
        chosen[members[:count]] = True
    return chosen
