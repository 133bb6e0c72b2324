"""Any network as a teacher: its last spatial features, one vector a patch.

Where it can be, the input is resized so that the network's own cells fall on the student's patches
(stride 32: 32 pixels a patch; transformers get their position embedding interpolated). Otherwise
the network runs at its own size and its feature map is interpolated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.errors import UsageError
from eva_fast.layers import Linear
from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
from eva_fast.model import Backbone
from eva_fast.teachers.base import Teacher, select_patches

logger = logging.getLogger(__name__)

CPU_IMAGES = 8


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

    capturable = True

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
        for module in features.modules():
            if type(module) is nn.Linear:  # on a CPU by the product that is faster there
                module.__class__ = Linear

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


def student_teacher(
    name: str, student: Backbone, grid: tuple[int, int] | None, whiten: bool
) -> BackboneTeacher:
    """A trained student that another library built, from a run of one's own."""
    side = (student.sizes.img_size,) * 2
    features = FeatureMap(student, prefix=student.prefix_tokens)
    return BackboneTeacher(name, features, side, grid, student.mean, student.std, whiten=whiten)


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
