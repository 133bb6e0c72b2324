"""Crops of many sizes resized at once, antialiased, as two batched matrix products.

    out = V x H^T,   V_ij = k((j + 1/2 - (i + 1/2) s) / max(s, 1)) / (the row's sum),   s = rows / size

with Keys' cubic kernel k (Keys 1981, a = -1/2), or another of Pillow's (csrc/input/filter.cpp has them),
stretched by s where the crop shrinks, as Pillow and PyTorch have it; H likewise of the columns. Pictures
of different sizes share a block of memory, with weights of 0 where a smaller one ends, so the device
runs a few large kernels and not some ten for each.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from eva_fast.data.decode.filters import Interpolation

Kernel = Callable[[Tensor], Tensor]


def _keys(x: Tensor) -> Tensor:
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0)


def _hamming(x: Tensor) -> Tensor:
    return torch.where(x < 1, torch.sinc(x) * (0.54 + 0.46 * torch.cos(math.pi * x)), 0.0)


KERNELS: dict[Interpolation, Kernel] = {
    "bicubic": _keys,
    "bilinear": lambda x: (1 - x).clamp_(min=0),
    "lanczos": _lanczos,
    "hamming": _hamming,
}
"""Of x >= 0."""
ELEMENTS = 1 << 26
"""Of the block that pictures share: 256 MB in float32."""


def resize(
    parts: Sequence[Tensor],
    flips: Sequence[bool],
    size: int,
    interpolation: Interpolation = "bicubic",
) -> Tensor:
    """uint8 [B, 3, size, size] from uint8 pictures [3, h, w] of one device; those of `flips` mirrored.

    Values are those of `F.interpolate(..., mode=interpolation, antialias=True)`, rounded; of the filters
    that it lacks, Pillow's.
    """
    out = torch.empty((len(parts), 3, size, size), dtype=torch.uint8, device=parts[0].device)
    for group in _groups(parts):
        index = torch.tensor(group).to(out.device, non_blocking=True)
        mirrored = [flips[i] for i in group]
        out[index] = _resize([parts[i] for i in group], mirrored, size, interpolation)
    return out


def _groups(parts: Sequence[Tensor]) -> Iterator[list[int]]:
    """Pictures of like size, as many as fit into a block."""
    group: list[int] = []
    height = width = 0
    for index in sorted(range(len(parts)), key=lambda i: parts[i].shape[1:]):
        rows, columns = parts[index].shape[1:]
        height, width = max(height, rows), max(width, columns)
        if group and 3 * (len(group) + 1) * height * width > ELEMENTS:
            yield group
            group, height, width = [], rows, columns
        group.append(index)
    yield group


def _resize(
    parts: list[Tensor], flips: list[bool], size: int, interpolation: Interpolation
) -> Tensor:
    device = parts[0].device
    heights, widths, mirrored = torch.tensor(
        [(part.shape[1], part.shape[2], flip) for part, flip in zip(parts, flips)]
    ).T.to(device, non_blocking=True)
    height, width = (max(part.shape[d] for part in parts) for d in (1, 2))
    block = torch.empty((len(parts), 3, height, width), dtype=torch.uint8, device=device)
    places = [block[i, :, : part.shape[1], : part.shape[2]] for i, part in enumerate(parts)]
    torch._foreach_copy_(places, parts)
    across = _weights(widths, width, size, interpolation)
    across = torch.where(mirrored[:, None, None] > 0, across.flip(1), across)
    down = _weights(heights, height, size, interpolation)
    out = down[:, None] @ (block.float() @ across.transpose(1, 2)[:, None])
    return out.round_().clamp_(0, 255).to(torch.uint8)


def _weights(lengths: Tensor, longest: int, size: int, interpolation: Interpolation) -> Tensor:
    """float32 [B, size, longest]: what each of `lengths` [B] pixels gives to each of `size`."""
    scale = (lengths.float() / size)[:, None, None]
    stretch = scale.clamp(min=1)
    centre = (torch.arange(size, device=lengths.device)[:, None] + 0.5) * scale
    pixel = torch.arange(longest, device=lengths.device)
    x = ((pixel + 0.5 - centre) / stretch).abs()
    weights = KERNELS[interpolation](x)
    weights = torch.where(pixel < lengths[:, None, None], weights, 0.0)
    return weights / weights.sum(-1, keepdim=True)
