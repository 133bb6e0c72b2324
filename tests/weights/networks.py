"""Small networks with weights away from their neutral start, so that a misplaced tensor shows."""

import torch

from eva_fast.model import create_model
from eva_fast.teachers.clip import ClipConfig, ClipTower

STUDENT = dict(
    img_size=48, patch_size=12, embed_dim=64, depth=3, num_heads=4, mlp_hidden=144, predict_dim=20
)
TOWER = dict(width=176, layers=2, heads=2, mlp_hidden=300, patch_size=12, grid=(4, 4), dim=24)
TIMM_STUDENT = dict(
    img_size=48, patch_size=12, embed_dim=64, depth=3, num_heads=4, mlp_ratio=144 / 64
)  # fmt: skip


def student(**sizes):
    torch.manual_seed(0)
    model = create_model(**{**STUDENT, **sizes}).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return model


def tower(**sizes):
    torch.manual_seed(0)
    config = ClipConfig(**{**TOWER, **sizes})
    model = ClipTower(config, config.grid).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(0.0, 0.1)
            if value.ndim == 1:
                value.add_(0.5)
    return model.requires_grad_(False)


def images(size=48):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def random_(model, seed=1):
    """Fills another library's model with numbers of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
            if value.ndim == 1:
                value.add_(0.5)
    return model.eval().requires_grad_(False)


def same(found, expected):
    """The same names with the same numbers, to the bit."""
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
