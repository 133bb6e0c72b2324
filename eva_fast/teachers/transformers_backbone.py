"""transformers' vision models as teachers, by folder: BEiT, DINOv3, Swin, ConvNeXt and others.

For networks that `vit.py` is not; they run as the library runs them.
"""

from __future__ import annotations

import inspect
import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eva_fast.errors import UsageError, first_line
from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
from eva_fast.teachers.backbone import BackboneTeacher, FeatureMap
from eva_fast.weights import hub
from eva_fast.weights.hints import image_statistics

logger = logging.getLogger(__name__)

SIDE = 224
MOST_PREFIX = 64


def transformers_teacher(
    name: str, folder: Path, grid: tuple[int, int] | None, whiten: bool = False
) -> BackboneTeacher:
    """The last hidden state of a vision model that transformers saved, or of a larger model's
    `vision_model`.

    Args:
        folder: with a config.json that says `model_type`.

    UsageError where transformers is missing, cannot build the model without running code of the folder,
    or finds no weights for a part of it.
    """
    transformers = hub.library("transformers", "transformers", name)
    try:
        model, report = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # the library has many
        raise UsageError(f"transformers cannot load {folder}: {first_line(error)}") from error
    tower = getattr(model, "vision_model", model)
    if missing := sorted(key for key in report["missing_keys"] if "pooler" not in key):
        raise UsageError(
            f"{folder} lacks {len(missing)} weights of its {type(model).__name__}: "
            f"{', '.join(missing[:4])}"
        )
    if "pixel_values" not in inspect.signature(tower.forward).parameters:
        raise UsageError(f"{folder} holds a {type(model).__name__}, which takes no images")
    size = _side(getattr(tower.config, "image_size", None))
    network = _LastState(tower.float().eval())
    features = FeatureMap(network, prefix=_prefix(network, size, tower.config))
    mean, std = image_statistics(folder)
    if mean is None or std is None:
        logger.warning(
            "%s has no preprocessor_config.json; assuming ImageNet's mean and deviation", folder
        )
    return BackboneTeacher(
        name, features, size, grid, mean or IMAGENET_MEAN, std or IMAGENET_STD, whiten=whiten
    )


class _LastState(nn.Module):
    """`last_hidden_state`, with positions interpolated where the model can."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        known = inspect.signature(model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if _INTERPOLATE in known else {}

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=images, **self.options).last_hidden_state


_INTERPOLATE = "interpolate_pos_encoding"


def _side(image_size: Any) -> tuple[int, int]:
    if isinstance(image_size, int):
        return image_size, image_size
    if isinstance(image_size, (list, tuple)) and len(image_size) == 2:
        return int(image_size[0]), int(image_size[1])
    return SIDE, SIDE


@torch.no_grad()
def _prefix(network: nn.Module, size: tuple[int, int], config: Any) -> int:
    """How many class and register tokens stand in front of the patches."""
    out = network(torch.zeros(1, 3, *size))
    if out.ndim == 4:
        return 0
    tokens, patch = out.shape[1], getattr(config, "patch_size", None)
    if isinstance(patch, int):
        extra = tokens - (size[0] // patch) * (size[1] // patch)
        if 0 <= extra <= MOST_PREFIX:
            return extra
    extra = tokens - math.isqrt(tokens) ** 2  # stages that shrink have no class token, or one
    if extra > 1:
        raise UsageError(f"{tokens} tokens of an image of {size} are on no grid that is known")
    return extra
