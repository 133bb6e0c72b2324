"""The teacher in the package: the first stages of an ImageNet MobileNetV2 (Sandler et al. 2018).

`features[:14]` of torchvision's network, 96 channels at a 16th of the input's side, with its batch
norms folded into the convolutions, so that torchvision is not needed. `mobilenet/pack.py` makes the
file; NOTICE names its source and licence.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
from eva_fast.teachers.base import Teacher, select_patches

FILE = Path(__file__).parent / "mobilenet" / "mobilenet_v2.safetensors"
STRIDE, DIM = 16, 96
# On a CPU, pixels at a time: the feature maps of so few stay in reach of its caches, and their memory
# is not asked from the system anew each time. 64 images of 128 pixels, their channels side by side, take
# 0.45 times as long as 16 at a time do, and a quarter of all at once (measured, one thread).
PART = 12 * 128**2
NATIVE = 14  # patches a side where nothing else is asked for: images of 224 pixels
# (expansion, channels, repeats, stride of the first), table 2 of the paper, as far as it is used.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))


class Convolution(nn.Conv2d):
    """A convolution that keeps the side (or divides it by its stride), then ReLU6 where said."""

    def __init__(
        self, inputs: int, outputs: int, side: int, *, stride: int = 1, groups: int = 1, relu: bool
    ):
        super().__init__(inputs, outputs, side, stride, padding=side // 2, groups=groups)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return F.relu6(x, inplace=True) if self.relu else x


class Block(nn.Module):
    """An inverted residual: widen by `expansion`, a 3x3 a channel, narrow; added to its input where
    the shapes are the same."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        wide = [Convolution(inputs, hidden, 1, relu=True)] if expansion != 1 else []
        self.layers = nn.Sequential(
            *wide,
            Convolution(hidden, hidden, 3, stride=stride, groups=hidden, relu=True),
            Convolution(hidden, outputs, 1, relu=False),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


@cache
def _weights() -> dict[str, Tensor]:
    return load_file(FILE)


def mobilenet() -> nn.Sequential:
    """The network with its weights: float32 [B,3,H,W] -> [B,96,H/16,W/16]."""
    layers: list[nn.Module] = [Convolution(3, 32, 3, stride=2, relu=True)]
    width = 32
    for expansion, channels, repeats, stride in STAGES:
        for number in range(repeats):
            layers.append(Block(width, channels, stride if number == 0 else 1, expansion))
            width = channels
    network = nn.Sequential(*layers)
    with torch.no_grad():
        found = [m for m in network.modules() if isinstance(m, Convolution)]
        for number, module in enumerate(found):
            module.weight.copy_(_weights()[f"{number:03d}.weight"])
            assert module.bias is not None
            module.bias.copy_(_weights()[f"{number:03d}.bias"])
    return network.eval()


class BuiltinTeacher(Teacher):
    """MobileNetV2's features on `grid`: images are resized to 16 pixels a patch."""

    capturable = True

    def __init__(self, grid: tuple[int, int] | None, whiten: bool = False) -> None:
        grid = grid or (NATIVE, NATIVE)
        size = (grid[0] * STRIDE, grid[1] * STRIDE)
        super().__init__("builtin", DIM, grid, size, IMAGENET_MEAN, IMAGENET_STD, whiten)
        self.network = mobilenet().to(memory_format=torch.channels_last)

    def image_features(self, images: Tensor, index: Tensor | None) -> Tensor:
        height, width = self.input_size or images.shape[-2:]
        pixels = len(images) * height * width if images.device.type == "cpu" else 0
        parts = images.tensor_split(min(max(1, -(-pixels // PART)), len(images) or 1))
        features = torch.cat([self.patch_features(self.prepare(part), None) for part in parts])
        return select_patches(features, index)

    def patch_features(self, images: Tensor, index: Tensor | None) -> Tensor:
        features = self.network(images.contiguous(memory_format=torch.channels_last))
        return select_patches(features.flatten(2).mT, index)
