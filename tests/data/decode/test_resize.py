"""Crops of many sizes at once, against PyTorch's resize of each alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from eva_fast.data.decode import resize as resizing
from eva_fast.data.decode.pillow import PILLOWS
from eva_fast.data.decode.resize import resize

SIZES = [(50, 70), (24, 24), (9, 130), (200, 31), (24, 60), (7, 5)]


def alone(part, flip, size, interpolation):
    options = dict(mode=interpolation, antialias=True, align_corners=False)
    crop = F.interpolate(part[None].double(), (size, size), **options)[0]
    return crop.flip(-1) if flip else crop


def check(parts, flips, size, interpolation="bicubic"):
    found = resize(parts, flips, size, interpolation)
    assert found.shape == (len(parts), 3, size, size) and found.dtype == torch.uint8
    for row, part, flip in zip(found, parts, flips):
        # half a level of rounding, and what float32 leaves beside it
        exact = alone(part, flip, size, interpolation).clamp(0, 255)
        assert (row - exact).abs().max() <= 0.501


def pictures():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in SIZES
    ]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_smaller_and_larger_pictures_mirrored_or_not(interpolation):
    check(pictures(), [False, True, True, False, False, True], 24, interpolation)


@pytest.mark.parametrize("interpolation", ["lanczos", "hamming"])
def test_filters_that_pytorch_has_not_are_pillows(interpolation):
    parts = pictures()
    found = resize(parts, [False] * len(parts), 24, interpolation)
    for row, part in zip(found, parts):
        for ours, channel in zip(row.numpy(), part.numpy()):
            image = Image.fromarray(channel.astype(np.float32))  # in which Pillow does not round
            theirs = np.asarray(image.resize((24, 24), PILLOWS[interpolation]))
            assert np.abs(ours - theirs.clip(0, 255)).max() <= 0.501


def test_parts_of_pictures():
    wide = torch.randint(0, 256, (3, 90, 90), dtype=torch.uint8)
    check([wide[:, 10:60, 20:75], wide[:, :30, 61:]], [True, False], 16)


def test_pictures_that_do_not_share_a_block(monkeypatch):
    monkeypatch.setattr(resizing, "ELEMENTS", 3 * 2 * 50 * 70)
    check(pictures(), [False] * len(SIZES), 24)


def test_one_picture_of_the_wanted_size_is_itself():
    (part,) = (p for p in pictures() if p.shape[1:] == (24, 24))
    assert torch.equal(resize([part], [False], 24)[0], part)
