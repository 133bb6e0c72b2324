"""Swin students as weight files: safetensors in Feature Distillation's naming, sizes in the metadata.

No tensor shows the windows or the image's side, for the bias of distances is a network's. So a file
without our metadata only starts a student whose sizes the options say (`initialise_swin`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from eva_fast.errors import UsageError
from eva_fast.model import SwinSizes, SwinV2
from eva_fast.weights import naming
from eva_fast.weights.reader import Weights, read

SWIN = "swinv2"
"""The `network` of a file that holds a `SwinV2`."""


def holds_swin(names: Mapping[str, object]) -> bool:
    """Whether these are names of a Swin V2's weights, behind any prefix."""
    return naming.find(names, naming.SWIN_V2) is not None


def read_swin_student(weights: Weights) -> dict[str, Tensor]:
    """State dict in official naming of the Swin V2 that a file holds, under official or timm's names."""
    found = naming.find(weights, naming.SWIN_V2)
    if found is None:
        raise UsageError(
            f"{weights.path} does not hold a Swin V2: names of Feature Distillation's code or timm are "
            "expected, with layers.0.blocks.0.attn.logit_scale"
        )
    names, prefix = found
    return names.read(weights, prefix)


def swin_sizes_in(weights: Weights) -> SwinSizes:
    """What a file's metadata says of its student. UsageError where it says nothing."""
    try:
        said = json.loads(weights.metadata["sizes"])
        values: Any = {
            name: tuple(said[name]) if isinstance(said[name], list) else said[name]
            for name in SwinSizes.__dataclass_fields__
        }
        return SwinSizes(**values)
    except (KeyError, ValueError, TypeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{weights.path} holds a Swin V2 and does not say its sizes: windows and the image's side "
            "leave no trace in the tensors. A run's own model.safetensors says them; init_from starts a "
            "run from any file"
        ) from None


def initialise_swin(model: SwinV2, path: str | os.PathLike[str]) -> None:
    """Starts a Swin student from a weight file, of any windows and image size. UsageError where it does
    not fit."""
    try:
        model.load_official(read_swin_student(read(path)))
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
