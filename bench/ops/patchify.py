"""uint8 images to normalised patch rows."""

import torch

from bench.harness import Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.layers.inputs import CLIP_MEAN, CLIP_STD
from eva_fast.ops import patchify

MODES = ("forward",)


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    images = shape.images()
    patch = shape.sizes.patch_size
    mean = torch.tensor(CLIP_MEAN, device=shape.device).view(3, 1, 1)
    std = torch.tensor(CLIP_STD, device=shape.device).view(3, 1, 1)

    def reference(x):
        """torchvision's ToTensor and Normalize, then the rows a convolution reads."""
        normal = (x.float().div(255) - mean).div(std).to(shape.dtype)
        return torch.nn.functional.unfold(normal, patch, stride=patch).transpose(1, 2).contiguous()

    def tuned(x):
        normal = torch.addcmul(-mean / std, x.to(torch.float32), 1 / (255 * std)).to(shape.dtype)
        tiles = normal.unfold(2, patch, patch).unfold(3, patch, patch)
        return tiles.permute(0, 2, 3, 1, 4, 5).reshape(len(x), -1, 3 * patch**2)

    kit.add("reference", reference)
    kit.add("tuned", tuned)
    kit.add("eva_fast", lambda x: patchify(x, patch, CLIP_MEAN, CLIP_STD, shape.dtype))
    kit.add_compiled()
    return differentiable(
        "patchify",
        mode,
        shape.label,
        shape.device,
        kit.functions,
        [images],
        missing=kit.missing,
        batch=shape.batch,
        tolerance=1e-5 if shape.dtype == torch.float32 else 1e-2,
    )
