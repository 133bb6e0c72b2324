"""What an export gives, and what the writers of all formats share."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from eva_fast.files import atomic_write
from eva_fast.model import EvaViT
from eva_fast.weights import naming

WEIGHTS = "model.safetensors"
TORCH_SUFFIXES = (".pt", ".pth")
OWN_STATISTICS = "# images less the mean and over the std of the run\n"
ChannelStatistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and deviation, a number a channel."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how the other library loads it."""

    path: Path
    """The file or folder."""
    snippet: str
    """Python that builds `model` in evaluation mode; comments say what it gives for images
    [B,3,H,W] normalised by CLIP's mean and standard deviation, if nothing else is said."""


def plain(model: EvaViT, names: naming.Naming) -> dict[str, Tensor]:
    """The tensors in another library's names, without what only pre-training needs."""
    return names.write(model.official_state_dict())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def text(value: Any) -> str:
    """`value` as Python is written."""
    plain = str(value) if isinstance(value, Path) else value
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, str) else repr(plain)
