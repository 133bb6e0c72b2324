"""Sizes of small CLIP towers, and what compares a teacher with its own library."""

import torch

from eva_fast.teachers import load_teacher

BATCH, TOLERANCE = 2, dict(atol=3e-5, rtol=1e-5)  # weights pass through float32
SIZES = dict(size=48, patch=12, width=176, heads=2, layers=2, hidden=300, dim=24)


def images(size=48):
    return torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(1))


def check(teacher, expected, shape=(16, 24)):
    assert tuple(expected.shape) == (BATCH, *shape)
    torch.testing.assert_close(teacher(images()), expected, **TOLERANCE)


def load(path, **options):
    return load_teacher(path, dtype=torch.float64, **options)
