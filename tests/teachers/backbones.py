"""What the tests of torchvision's and timm's networks share."""

import torch

from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD


def pixels(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=generator)


def imagenet(images):
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (IMAGENET_MEAN, IMAGENET_STD))
    return (images / 255 - mean) / std


def close(features, expected):
    """Folded batch norms round differently: within 1e-5 of the largest feature."""
    assert features.shape == expected.shape
    assert (features - expected).abs().max() <= 2e-5 * expected.abs().max()
