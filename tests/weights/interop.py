"""What the tests of exported students share: sizes, and the printed lines run as they are."""

import pytest
import torch

from eva_fast import weights
from tests.weights.networks import student

SIZES = {
    "small": {},
    "heads of 22, hidden 279": dict(embed_dim=66, num_heads=3, mlp_hidden=279),
    "heads of 88, patch 16, 5x5 patches": dict(
        embed_dim=176, num_heads=2, mlp_hidden=469, patch_size=16, img_size=80, depth=2
    ),
    "3x3 patches, one block": dict(img_size=42, patch_size=14, depth=1, predict_dim=5),
}
every_size = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)


def exported(path, format, sizes):
    """(our student, what its snippet leaves in its name space, the `Exported`)."""
    ours = student(**sizes)
    written = weights.export(ours, path, format)
    space = {}
    exec(written.snippet, space)
    return ours, space, written


@torch.no_grad()
def tokens_of(model):
    """(images, all tokens after the last norm) of a student."""
    side = model.sizes.img_size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    return images, model.forward_features(images)
