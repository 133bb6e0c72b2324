import io

import numpy as np
import pytest
import torch
from PIL import Image

from eva_fast.data.samples.crop import Cropper
from eva_fast.data.samples.jitter import JitteredCropper, JitteredImageField, draw_jitter, jittered

OPTIONS = ((0.3, 1.0), (3 / 4, 4 / 3), 0.5, 100.0)


@pytest.fixture
def photo():
    """Smooth colours, 90 x 70."""
    y, x = np.mgrid[:70, :90]
    channels = [127 + 100 * np.sin(x / 20 + i) * np.cos(y / 15 - i) for i in range(3)]
    return Image.fromarray(np.stack(channels, 2).astype(np.uint8))


def test_it_is_torchvision_s_jitter_with_the_factors_drawn(photo):
    F = pytest.importorskip("torchvision.transforms.functional")
    kinds = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    for seed in (1, 2**63 + 5, 2**64 - 1):
        expected = photo
        for kind, factor in draw_jitter(seed, 0.4):
            expected = kinds[kind](expected, factor)
        assert np.array_equal(jittered(photo, seed, 0.4), expected)


def test_factors_and_orders_are_uniform():
    draws = [draw_jitter(seed, 0.4) for seed in range(6000)]
    factors = np.array([[factor for _, factor in sorted(draw)] for draw in draws])
    assert factors.min() >= 0.6 and factors.max() <= 1.4
    assert np.abs(factors.mean(0) - 1).max() < 0.01
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.05
    orders = np.unique([[kind for kind, _ in draw] for draw in draws], axis=0, return_counts=True)
    assert len(orders[1]) == 6 and orders[1].min() > 850


def test_the_crop_is_that_of_the_jittered_image(photo):
    cropper, plain = JitteredCropper(32, *OPTIONS, 0.4), Cropper(32, *OPTIONS)
    expected = plain(jittered(photo, 7, 0.4), 7)
    assert np.array_equal(cropper(photo, 7), expected)
    assert not np.array_equal(plain(photo, 7), expected)
    encoded = io.BytesIO()
    photo.save(encoded, "PNG")
    assert np.array_equal(cropper(encoded.getvalue(), 7), expected)
    tensor = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    assert np.array_equal(cropper(tensor, 7), expected)
    encoded = io.BytesIO()
    photo.save(encoded, "JPEG", quality=95)
    off = cropper(encoded.getvalue(), 7).astype(float) - expected
    assert np.abs(off).mean() < 3


def test_no_strength_is_no_jitter(photo):
    assert np.array_equal(
        JitteredCropper(32, *OPTIONS, 0.0)(photo, 3), Cropper(32, *OPTIONS)(photo, 3)
    )


def test_a_strength_out_of_range():
    with pytest.raises(ValueError, match=r"jitter must be at least 0 and below 1, got 1\.0"):
        JitteredImageField(32, *OPTIONS[:3], strength=1.0)
