"""Colour jitter: torchvision's, in bytes, whatever computes it, of the whole image before its crop."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from bench.photos import encode, jpegs, photographs
from eva_fast import native
from eva_fast.data.decode import jpeg
from eva_fast.data.decode.jpeg import BLEND
from eva_fast.data.samples.crop import Cropper
from eva_fast.data.samples.jitter import KINDS, draw_jitter, jittered
from tests.data.pictures import difference, expected

needs_native = pytest.mark.skipif(not native.available(), reason="the native library is not built")


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "pillow"])
def path(request, monkeypatch):
    if request.param == "pillow":
        monkeypatch.setattr(jpeg, "library", lambda: None)
    return request.param


@pytest.fixture(scope="module")
def photo():
    return photographs()[0].crop((60, 30, 533, 388))


def enhanced(image, blends):
    """Pillow's own, one after the other."""
    for kind, factor in blends:
        image = KINDS[kind](image).enhance(float(factor))
    return image


def test_it_is_torchvision_s_jitter_with_the_factors_drawn(photo, path):
    F = pytest.importorskip("torchvision.transforms.functional")
    kinds = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    for seed in (1, 2**63 + 5, 2**64 - 1):
        image, blends = photo, draw_jitter(seed, 0.4)
        for kind, factor in blends:
            image = kinds[kind](image, float(factor))
        assert np.array_equal(jittered(photo, blends), image)


@needs_native
@pytest.mark.parametrize("kind", range(3), ids=[k.__name__ for k in KINDS])
def test_every_blend_is_pillows_to_the_byte(kind):
    """Of all values and of any factor, within 0 to 1 and beyond; an image of one row, too."""
    rng = np.random.default_rng(kind)
    for shape in ((64, 1024, 3), (1, 7, 3), (5, 1, 3)):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        for factor in (0.0, 0.3, 1.0, 1.7, 12.5, *rng.uniform(0, 2, 6)):
            blends = np.array([(kind, factor)], BLEND)
            theirs = enhanced(Image.fromarray(pixels), blends)
            assert np.array_equal(jittered(Image.fromarray(pixels), blends), theirs), factor


def test_factors_and_orders_are_uniform():
    draws = [draw_jitter(seed, 0.4) for seed in range(6000)]
    factors = np.array([np.sort(draw, order="kind")["factor"] for draw in draws])
    assert factors.min() >= 0.6 and factors.max() <= 1.4
    assert np.abs(factors.mean(0) - 1).max() < 0.01
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.05
    orders = np.unique([draw["kind"] for draw in draws], axis=0, return_counts=True)
    assert len(orders[1]) == 6 and orders[1].min() > 850


def test_above_1_factors_begin_at_0():
    """As torchvision's: uniform in max(0, 1 - strength) to 1 + strength."""
    factors = np.concatenate([draw_jitter(seed, 1.5)["factor"] for seed in range(4000)])
    assert 0 <= factors.min() < 0.01 and 2.49 < factors.max() <= 2.5
    assert abs(factors.mean() - 1.25) < 0.02


def test_the_crop_is_that_of_the_jittered_image(photo, path):
    cropper, plain = Cropper(64, color_jitter=0.4), Cropper(64)
    wanted = plain(jittered(photo, draw_jitter(7, 0.4)), 7)
    assert np.array_equal(cropper(photo, 7), wanted)
    assert not np.array_equal(plain(photo, 7), wanted)
    png = io.BytesIO()
    photo.save(png, "PNG")
    assert np.array_equal(cropper(png.getvalue(), 7), wanted)
    tensor = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    assert np.array_equal(cropper(tensor, 7), wanted)


def test_crops_of_jpegs_are_pillows_of_the_jittered_image(photo, path):
    """Also of grey ones, rotated ones, and those that are decoded at a smaller size."""
    turned = Image.Exif()
    turned[0x0112] = 6
    big = photo.resize((1900, 1430), Image.Resampling.LANCZOS)
    files = [
        *jpegs(4), encode(photo.convert("L"), quality=92), encode(photo, quality=92, exif=turned),
        encode(big, quality=92),
    ]  # fmt: skip
    for number, data in enumerate(files * 3):
        cropper = Cropper((97, 160, 224)[number // len(files)], color_jitter=0.4)
        whole = Image.open(io.BytesIO(data)).convert("RGB")
        whole = whole.transpose(Image.Transpose.ROTATE_270) if number % len(files) == 5 else whole
        reference = expected(
            enhanced(whole, draw_jitter(number, 0.4)),
            cropper.box(*whole.size, number),
            cropper.size,
        )
        mean, psnr = difference(cropper(data, number), reference)
        assert mean <= 2 and psnr >= 35, (number, mean, psnr)


def test_contrast_is_of_the_mean_of_the_whole_image(path):
    """A crop of the white half of an image goes by a mean that the black half pulls down."""
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[:, 32:] = 200
    image = Image.fromarray(halves)
    seed = next(
        seed for seed in range(10_000)
        if (box := Cropper(8, scale=(0.05, 0.05)).box(64, 64, seed)).left >= 33
        and draw_jitter(seed, 0.9)["kind"][0] == 1
    )  # fmt: skip
    blends = draw_jitter(seed, 0.9)
    factor = float(blends["factor"][0])
    grey = ImageEnhance.Contrast(image).enhance(factor).getpixel((40, 5))[0]
    assert abs(grey - np.clip(100 + factor * 100, 0, 255)) <= 1 and box.left >= 33
    crop = Cropper(8, scale=(0.05, 0.05), color_jitter=0.9)(image, seed)
    assert np.array_equal(np.unique(crop), np.unique(np.array(enhanced(image, blends))[:, 40]))


def test_no_strength_is_no_jitter(photo):
    assert np.array_equal(Cropper(32, color_jitter=0.0)(photo, 3), Cropper(32)(photo, 3))
