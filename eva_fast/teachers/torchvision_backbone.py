"""torchvision's networks as teachers: cut before the head, batch norms folded."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from eva_fast.errors import UsageError
from eva_fast.model.networks.torchvision import HEADS, last_spatial
from eva_fast.teachers.backbone import BackboneTeacher, FeatureMap
from eva_fast.teachers.fold import fold_batch_norms
from eva_fast.weights import Weights
from eva_fast.weights.backbone import load_network


def torchvision_models() -> list[str]:
    """Names of torchvision's classifiers; none where it is not installed."""
    try:
        from torchvision import models
    except ImportError:
        return []
    return models.list_models(module=models)


def torchvision_teacher(
    name: str,
    architecture: str,
    weights: Weights,
    grid: tuple[int, int] | None,
    native: int = 224,
    whiten: bool = False,
) -> BackboneTeacher:
    """A torchvision classifier without its head, with weights from a file."""
    from torchvision.models import get_model

    # These two learned on inputs normalised otherwise and convert them inside.
    options: dict[str, Any] = (
        {"init_weights": False, "transform_input": True}
        if architecture in ("googlenet", "inception_v3")
        else {}
    )
    model = get_model(architecture, weights=None, **options)
    state = {_old_densenet(key): weights[key] for key in weights}
    load_network(
        model, state, architecture, lambda key: key.split(".")[0] in HEADS, where=weights.path
    )

    def resized(size: tuple[int, int]) -> FeatureMap:
        from torchvision.models.vision_transformer import interpolate_embeddings

        if not hasattr(model, "image_size") or size[0] != size[1]:
            raise UsageError(f"{architecture} has no way to another input size")
        other = get_model(architecture, weights=None, image_size=size[0])
        table = interpolate_embeddings(size[0], model.patch_size, model.state_dict())
        other.load_state_dict(table)
        return _torchvision_features(other.eval(), size[0])

    features = _torchvision_features(model.eval(), native)
    return BackboneTeacher(name, features, (native, native), grid, resized=resized, whiten=whiten)


@torch.no_grad()
def _torchvision_features(model: nn.Module, size: int) -> FeatureMap:
    """`model` cut after the last module before its head that gives a map or a token sequence."""
    from torchvision.models.feature_extraction import create_feature_extractor

    images = torch.zeros(1, 3, size, size)
    node = last_spatial(model, images)
    network = create_feature_extractor(model, {node: "features"})
    prefix = 1 if network(images)["features"].ndim == 3 else 0
    return FeatureMap(fold_batch_norms(network), prefix=prefix)


def _old_densenet(key: str) -> str:
    """torchvision's DenseNet files say `denselayer1.norm.1.weight` for `denselayer1.norm1.weight`."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key)
