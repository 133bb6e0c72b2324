"""Statistics over many masks of the official generator: where they lie and how long their outline is."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import eva_fast
from tests.golden import Check


def check(path: Path) -> Iterator[Check]:
    height, width = map(int, re.search(r"(\d+)x(\d+)", path.stem).groups())  # type: ignore[union-attr]
    official = np.load(path)
    count = round(height * width * 105 / 256)
    masks = eva_fast.BlockMasker((height, width), count, round(height * width / 16), seed=1)(
        20_000
    ).numpy()
    together = np.corrcoef(masks.mean(0).ravel(), official["mean_map"].ravel())[0, 1]
    yield Check("1 - correlation of the mean mask", float(1 - together), 5e-3)
    outline = edges(masks)
    yield Check(
        "mean outline, relative", float(abs(outline.mean() / official["edge_mean"] - 1)), 2e-2
    )
    yield Check(
        "its deviation, relative", float(abs(outline.std() / official["edge_std"] - 1)), 5e-2
    )


def edges(masks: np.ndarray) -> np.ndarray:
    """Neighbours of which one is masked and the other is not, a mask."""
    across = (masks[:, :, 1:] != masks[:, :, :-1]).sum((1, 2))
    return across + (masks[:, 1:] != masks[:, :-1]).sum((1, 2))
