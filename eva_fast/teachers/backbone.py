"""Any torchvision or timm network as a teacher: its last spatial features, one vector a patch.

Where it can be, the input is resized so that the network's own cells fall on the student's patches
(stride 32: 32 pixels a patch; transformers get their position embedding interpolated). Otherwise
the network runs at its own size and its feature map is interpolated.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.errors import UsageError
from eva_fast.teachers.base import IMAGENET_MEAN, IMAGENET_STD, Teacher, select_patches
from eva_fast.teachers.fold import fold_batch_norms
from eva_fast.teachers.weights import Weights

logger = logging.getLogger(__name__)

# Top-level modules of torchvision's classifiers that come after the last features.
_HEADS = {
    "avgpool", "classifier", "head", "heads", "fc", "flatten", "dropout", "AuxLogits", "aux1",
    "aux2",
}  # fmt: skip
CPU_IMAGES = 8
_TIMM_HEADS = ("head", "classifier", "fc", "last_linear", "aux", "pre_logits")


class FeatureMap(nn.Module):
    """A network whose output is brought to [B,rows,columns,C].

    Args:
        network: gives [B,C,h,w], [B,h,w,C] (`channels_last`) or tokens [B,prefix+h*w,C].
        prefix: class and register tokens in front of the patch tokens.
    """

    def __init__(self, network: nn.Module, channels_last: bool = False, prefix: int = 0) -> None:
        super().__init__()
        self.network, self.channels_last, self.prefix = network, channels_last, prefix

    def forward(self, images: Tensor) -> Tensor:
        out = self.network(images)
        if isinstance(out, dict):
            out = out["features"]
        if out.ndim == 4:
            return out if self.channels_last else out.permute(0, 2, 3, 1)
        tokens = out[:, self.prefix :]
        height, width = images.shape[-2:]
        rows = max(1, round((tokens.shape[1] * height / width) ** 0.5))
        if tokens.shape[1] % rows:
            raise UsageError(f"{tokens.shape[1]} tokens do not make a grid of {rows} rows")
        return tokens.unflatten(1, (rows, -1))


class BackboneTeacher(Teacher):
    """The last spatial features of a network.

    Args:
        features: the network as a `FeatureMap`, with its weights.
        native: (height, width) in pixels the weights are meant for.
        resized: (height, width) -> the same network for that input, where sizes are built in.
    """

    def __init__(
        self,
        name: str,
        features: FeatureMap,
        native: tuple[int, int],
        grid: tuple[int, int] | None,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        resized: Callable[[tuple[int, int]], FeatureMap] | None = None,
        whiten: bool = False,
    ) -> None:
        shape = _probe(features.eval(), native)
        if shape is None:
            raise UsageError(f"teacher {name!r} gives no feature map for images of {native}")
        grid = grid or shape[:2]
        size = native
        if shape[:2] != grid:
            features, size = _fit(features, native, shape[:2], grid, resized)
        super().__init__(name, shape[2], grid, size, mean, std, whiten)
        # Convolutions run faster on pixels that lie side by side: MobileNetV2 1.8 times on a CPU.
        self.features = features.to(memory_format=torch.channels_last)

    def patch_features(self, images: Tensor, index: Tensor | None) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        # Few images at a time stay in a CPU's cache from layer to layer: 1.4 times as fast.
        part = CPU_IMAGES if images.device.type == "cpu" else len(images)
        out = torch.cat([self.features(x) for x in images.split(max(1, part))])
        if tuple(out.shape[1:3]) != self.grid:
            out = F.interpolate(
                out.permute(0, 3, 1, 2).float(), self.grid, mode="bilinear", antialias=True
            ).permute(0, 2, 3, 1)
        return select_patches(out.flatten(1, 2), index)


def _fit(
    features: FeatureMap,
    native: tuple[int, int],
    cells: tuple[int, int],
    grid: tuple[int, int],
    resized: Callable[[tuple[int, int]], FeatureMap] | None,
) -> tuple[FeatureMap, tuple[int, int]]:
    """The network and input size that give `grid` cells, or those at hand where none does."""
    if native[0] % cells[0] == 0 and native[1] % cells[1] == 0:
        size = (native[0] // cells[0] * grid[0], native[1] // cells[1] * grid[1])
        for build in (lambda: features, lambda: resized(size) if resized else features):
            try:
                candidate = build().eval()
                if (shape := _probe(candidate, size)) and shape[:2] == grid:
                    return candidate, size
            except (RuntimeError, ValueError, AssertionError, TypeError) as error:
                logger.debug("no network for %s pixels: %s", size, error)
    logger.info("features on a %s grid are interpolated to %s", cells, grid)
    return features, native


@torch.no_grad()
def _probe(features: FeatureMap, size: tuple[int, int]) -> tuple[int, int, int] | None:
    """(rows, columns, channels) for an input of `size`; None where the network refuses it."""
    try:
        rows, columns, channels = features(torch.zeros(1, 3, *size)).shape[1:]
        return rows, columns, channels
    except (RuntimeError, ValueError, AssertionError):
        return None


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
    _load(model, state, weights, architecture, lambda key: key.split(".")[0] in _HEADS)

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

    last: list[tuple[str, int]] = []
    hooks = []
    for name, module in model.named_modules():
        if name and name.split(".")[0] not in _HEADS:

            def record(_: nn.Module, __: Any, out: Any, name: str = name) -> None:
                if isinstance(out, Tensor) and out.ndim in (3, 4) and out.shape[-2] > 1:
                    last[:] = [(name, out.ndim)]

            hooks.append(module.register_forward_hook(record))
    try:
        model(torch.zeros(1, 3, size, size))
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise UsageError(f"{type(model).__name__} has no spatial features")
    node, ndim = last[0]
    network = fold_batch_norms(create_feature_extractor(model, {node: "features"}))
    return FeatureMap(network, prefix=1 if ndim == 3 else 0)


class _TimmFeatures(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_features(images)


def timm_teacher(
    name: str,
    model: Any,
    grid: tuple[int, int] | None,
    whiten: bool = False,
) -> BackboneTeacher:
    """A timm model built without a head, its weights loaded."""

    def wrap(inner: Any) -> FeatureMap:
        last = str(getattr(inner, "output_fmt", "NCHW")).endswith("NHWC")
        return FeatureMap(_TimmFeatures(inner), last, getattr(inner, "num_prefix_tokens", 0) or 0)

    def resized(size: tuple[int, int]) -> FeatureMap:
        if not hasattr(model, "set_input_size"):
            raise UsageError("the model has no way to another input size")
        other = copy.deepcopy(model)
        other.set_input_size(img_size=size)
        return wrap(other)

    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    _, height, width = config.get("input_size") or (3, 224, 224)
    if size := getattr(getattr(model, "patch_embed", None), "img_size", None):
        height, width = size
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


def load_timm(model: nn.Module, weights: Weights, architecture: str) -> None:
    """Load weights into a headless timm model; the file's head is left out."""
    state = {key: weights[key] for key in weights}
    _load(model, state, weights, architecture, lambda key: key.startswith(_TIMM_HEADS))


def _load(
    model: nn.Module,
    state: dict[str, Tensor],
    weights: Weights,
    architecture: str,
    is_head: Callable[[str], bool],
) -> None:
    own = model.state_dict()
    body = {
        key: value
        for key, value in state.items()
        if not is_head(key) or (key in own and own[key].shape == value.shape)
    }
    shapes = [
        f"{key} is {list(value.shape)}, not {list(own[key].shape)}"
        for key, value in body.items()
        if key in own and own[key].shape != value.shape
    ]
    if not shapes:
        result = model.load_state_dict(body, strict=False)
        missing = [
            key
            for key in result.missing_keys
            if not is_head(key) and not key.endswith("num_batches_tracked")
        ]
        unknown = result.unexpected_keys
        if not missing and not unknown:
            return
        shapes = [f"lacks {key}" for key in missing] + [f"unknown {key}" for key in unknown]
    raise UsageError(
        f"{weights.path} does not fit {architecture}: {'; '.join(shapes[:4])}"
        + (f" and {len(shapes) - 4} more" if len(shapes) > 4 else "")
    )


def _old_densenet(key: str) -> str:
    """torchvision's DenseNet files say `denselayer1.norm.1.weight` for `denselayer1.norm1.weight`."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key)
