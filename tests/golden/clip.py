"""A CLIP image tower in OpenAI's naming: the features that EVA-01 regresses, patch by patch."""

from collections.abc import Iterator
from pathlib import Path

import torch

import eva_fast
from tests.golden import Check, largest, read


def check(path: Path) -> Iterator[Check]:
    tensors, _ = read(path)
    expected = tensors["patch_features"]
    teacher = eva_fast.load_teacher(path)
    yield Check("patch features", largest(teacher(tensors["image"]), expected), 1e-5)
    mask = torch.arange(0, expected.shape[1], 2).repeat(len(expected), 1)
    rows = expected[:, ::2].flatten(0, 1)
    yield Check("features of masked patches", largest(teacher(tensors["image"], mask), rows), 1e-5)
