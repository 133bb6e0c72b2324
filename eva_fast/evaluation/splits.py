"""Images with classes, as two splits: one to fit a probe on, one to judge it."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eva_fast.data import Source, open_source
from eva_fast.errors import UsageError

log = logging.getLogger(__name__)
VALIDATION_SHARE = 0.25
SPLIT_SEED = 0

Labels = Mapping[int, str]
"""The class of every image of a source that has one, by number, in order."""


@dataclass(frozen=True)
class Split:
    """Some images of a source, by number, and the class of each as an index into `classes`."""

    numbers: Sequence[int]
    labels: Sequence[int]
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.numbers)


def open_labelled(data: Any) -> list[Source]:
    """The sources of training and of validation images, or the one that holds both.

    Two for "builtin" and for a folder with train/ and val/; else whatever `open_source` opens.
    """
    if isinstance(data, str) and data == "builtin":
        return [open_source(data, split="train"), open_source(data, split="val")]
    if isinstance(data, str | Path):
        train, val = Path(data) / "train", Path(data) / "val"
        if train.is_dir() and val.is_dir():
            return [open_source(str(train)), open_source(str(val))]
    return [open_source(data)]


def known_labels(sources: Sequence[Source]) -> list[Labels] | None:
    """The labels of each source; None where they are not known without reading the images."""
    if not all(source.knows_labels for source in sources):
        return None
    return [labelled(range(len(s)), map(s.label, range(len(s)))) for s in sources]


def labelled(numbers: Iterable[int], labels: Iterable[str | None]) -> Labels:
    """The labels of those images that have one; the others are left out, and it is logged."""
    pairs = list(zip(numbers, labels))
    found = {number: label for number, label in pairs if label}
    if found and len(found) < len(pairs):
        lacking = len(pairs) - len(found)
        log.warning("%d of %d images have no class and are left out", lacking, len(pairs))
    return found


def split(labels: Sequence[Labels], data: Any) -> tuple[Split, Split]:
    """(training split, validation split), given the labels of the sources of `open_labelled`. Of one
    source a fixed quarter of every class is for validation.

    Raises ValueError: no labels, fewer than two classes, or validation classes that training lacks.
    """
    if not all(labels):
        raise UsageError(
            f"the images of {data} have no classes: evaluation needs a folder a class, "
            "or train/ and val/ with such folders"
        )
    classes = sorted(set(labels[0].values()))
    if len(classes) < 2:
        raise UsageError(
            f"all images of {data} are of one class ({classes[0]}): a probe needs at least two"
        )
    strange = sorted(set(labels[-1].values()) - set(classes))
    if strange:
        raise UsageError(
            f"val of {data} has classes that train lacks: {', '.join(strange[:5])}; "
            f"train has {', '.join(classes[:20])}"
        )
    place = {name: index for index, name in enumerate(classes)}
    train, val = (
        Split(list(known), [place[name] for name in known.values()], classes)
        for known in (labels[0], labels[-1])
    )
    if len(labels) > 1:
        return train, val
    numbers, indices = np.array(train.numbers), np.array(train.labels)
    for_val = _stratified(indices)
    if not for_val.any():
        raise UsageError(f"{data} has one image a class: nothing is left for validation")
    train, val = (
        Split(numbers[part].tolist(), indices[part].tolist(), classes)
        for part in (~for_val, for_val)
    )
    return train, val


def _stratified(indices: np.ndarray) -> np.ndarray:
    """Which images are for validation, bool [n]: a quarter of every class, at least one of two."""
    draws = np.random.default_rng(SPLIT_SEED)
    chosen = np.zeros(len(indices), dtype=bool)
    for index in np.unique(indices):
        members = draws.permutation(np.flatnonzero(indices == index))
        count = max(round(VALIDATION_SHARE * len(members)), 1) if len(members) > 1 else 0
        chosen[members[:count]] = True
    return chosen
