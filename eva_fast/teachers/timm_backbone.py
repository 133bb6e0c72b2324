"""timm's networks as teachers."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eva_fast.errors import UsageError
from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
from eva_fast.teachers.backbone import BackboneTeacher, FeatureMap
from eva_fast.weights import Weights
from eva_fast.weights.backbone import common_prefix, load_network

# Arguments of timm.create_model by which a configuration would reach beyond its own folder.
_FILES = ("checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit")
_HEADS = ("head", "classifier", "fc", "last_linear", "aux", "pre_logits")


def timm_models() -> list[str]:
    """Names of timm's models; none where it is not installed."""
    try:
        import timm
    except ImportError:
        return []
    return timm.list_models()


def timm_teacher(
    name: str,
    architecture: str,
    weights: Weights,
    grid: tuple[int, int] | None,
    whiten: bool = False,
    options: Mapping[str, Any] | None = None,
) -> BackboneTeacher:
    """A timm model without its head, with weights from a file.

    Args:
        architecture: the model's name, without a tag.
        options: arguments of the model beside its name.
    """
    import timm

    if foreign := [
        name for name in options or () if name in _FILES or name.startswith("pretrained")
    ]:
        raise UsageError(f"{architecture} is not built with {foreign[0]}=, which names other files")
    try:
        model: Any = timm.create_model(architecture, **{**(options or {}), "num_classes": 0})
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UsageError(f"timm cannot build {architecture} with {options}: {error}") from error
    _load(model, weights, architecture)
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    _, height, width = config.get("input_size") or (3, 224, 224)
    if size := getattr(getattr(model, "patch_embed", None), "img_size", None):
        height, width = size
    wrap = _features(model.eval(), (height, width))

    def resized(size: tuple[int, int]) -> FeatureMap:
        if not hasattr(model, "set_input_size"):
            raise UsageError("the model has no way to another input size")
        other = copy.deepcopy(model)
        other.set_input_size(img_size=size)
        return wrap(other)

    return BackboneTeacher(
        name,
        wrap(model),
        (height, width),
        grid,
        tuple(config.get("mean") or IMAGENET_MEAN),
        tuple(config.get("std") or IMAGENET_STD),
        resized,
        whiten,
    )


def _load(model: nn.Module, weights: Weights, architecture: str) -> None:
    """Load weights in the model's own names, or in others that timm itself converts: those of the
    authors of DINOv2, for example."""
    state: dict[str, Tensor] = dict(weights)
    try:
        load_network(model, state, architecture, _is_head, where=weights.path)
        return
    except UsageError as error:
        refused = error
    prefix = common_prefix(state, [name for name in model.state_dict() if not _is_head(name)])
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    converter = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if converter is None or not _keeps_norm(model, state):
        raise refused
    try:
        converted = converter(state, model)
    except Exception:  # it was written for files that fit
        raise refused from None
    try:
        load_network(model, converted, architecture, _is_head, where=weights.path)
    except UsageError:
        raise refused from None


def _keeps_norm(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether a last norm of all tokens has its place: timm moves it behind a mean otherwise."""
    return "norm.weight" not in state or "norm.weight" in model.state_dict()


def _is_head(key: str) -> bool:
    return key.startswith(_HEADS)


class _Maps(nn.Module):
    """Features as `forward_features` gives them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_features(images)


class _Tokens(_Maps):
    """The patch tokens of `forward_features` as a map [B,C,rows,columns]: timm knows which they are."""

    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_intermediates(
            images, indices=1, norm=True, intermediates_only=True
        )[-1]


@torch.no_grad()
def _features(model: Any, size: tuple[int, int]) -> Any:
    """How to read maps from models like this one: a function from a model to its `FeatureMap`."""
    images = torch.zeros(1, 3, *size)
    channels_last = str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")
    if model.forward_features(images).ndim == 3:
        try:
            _Tokens(model)(images)
            return lambda inner: FeatureMap(_Tokens(inner))
        except (AttributeError, AssertionError):
            pass  # a model that cannot say
    prefix = getattr(model, "num_prefix_tokens", 0) or 0
    return lambda inner: FeatureMap(_Maps(inner), channels_last, prefix)
