"""Crops: as Pillow's of the fully decoded image, whatever decodes them and on any machine."""

import io
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from bench.photos import encode, jpegs, photographs
from eva_fast import native
from eva_fast.data import jpeg, sample_from_bytes
from eva_fast.data.crop import Cropper
from eva_fast.data.masks import BlockMasker

needs_native = pytest.mark.skipif(not native.available(), reason="the native library is not built")
needs_turbo = pytest.mark.skipif(not jpeg.available(), reason="libjpeg-turbo was not found")


@pytest.fixture(scope="module")
def files():
    return jpegs(60)


@pytest.fixture(scope="module")
def photo():
    """A photograph of odd size without any symmetry."""
    return photographs()[0].crop((60, 30, 533, 388))


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "pillow"])
def path(request, monkeypatch):
    if request.param == "pillow":
        monkeypatch.setattr(jpeg, "_functions", lambda: None)
    return request.param


def expected(image, box, size):
    """Pillow's crop, resize and mirror of a decoded image: int [3, size, size]."""
    part = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    pixels = np.asarray(part.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    return (pixels[:, :, ::-1] if box.flip else pixels).astype(int)


def difference(crop, reference):
    """(mean absolute error in levels of 255, PSNR in dB)."""
    error = crop.astype(int) - reference
    return np.abs(error).mean(), 10 * math.log10(255**2 / max((error**2).mean(), 1e-10))


def check(data, seed, cropper, image=None):
    image = image or Image.open(io.BytesIO(data)).convert("RGB")
    reference = expected(image, cropper.box(image.width, image.height, seed), cropper.size)
    mean, psnr = difference(cropper(data, seed), reference)
    assert mean <= 2 and psnr >= 35, f"seed {seed}: mean error {mean:.2f}, PSNR {psnr:.1f} dB"
    return mean, psnr


def test_300_crops_equal_pillows(files, path):
    cropper = Cropper(224)
    results = [check(files[i % len(files)], i, cropper) for i in range(300)]
    means, psnrs = zip(*results)
    assert np.mean(means) < 0.75 and min(psnrs) > 40


@needs_turbo
@pytest.mark.parametrize(
    "options",
    [
        dict(subsampling=0),
        dict(subsampling=1),
        dict(subsampling=2),
        dict(subsampling=2, restart_marker_blocks=1),
        dict(subsampling=2, restart_marker_rows=1),
        dict(subsampling=0, restart_marker_blocks=13),
        dict(optimize=True, quality=30),
        dict(quality=100),
        dict(quality=3),
        dict(subsampling=2, progressive=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (17, 33), (199, 151)], ids=str)
def test_decoder_of_every_layout(photo, options, size):
    data = encode(photo.resize(size) if min(size) < 100 else photo.crop((0, 0, *size)), **options)
    assert jpeg.jpeg_info(data) == (*size, 1)
    for i in range(12):
        check(data, i, Cropper(32, scale=(0.01, 1)))
        check(data, i, Cropper(75, scale=(0.3, 1)))


@needs_turbo
def test_decoder_of_grey(photo):
    data = encode(photo.convert("L"), quality=90)
    assert jpeg.jpeg_info(data)
    crops = [Cropper(64)(data, i) for i in range(10)]
    assert all((c[0] == c[1]).all() and (c[0] == c[2]).all() for c in crops)
    for i in range(10):
        check(data, i, Cropper(64))


@pytest.mark.parametrize("factor", [2, 5])
@pytest.mark.parametrize("progressive", [False, True], ids=["sequential", "progressive"])
def test_large_images(photo, path, factor, progressive):
    """Above four times the crop's size a reduced decode suffices."""
    big = photo.resize((photo.width * factor, photo.height * factor), Image.Resampling.LANCZOS)
    grain = np.random.default_rng(0).normal(0, 6, (big.height, big.width, 3))
    big = Image.fromarray(np.clip(np.asarray(big) + grain, 0, 255).astype(np.uint8))
    data = encode(big, quality=90, progressive=progressive)
    for i in range(6):
        check(data, i, Cropper(112))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(photo, path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo, quality=92, exif=exif)
    upright = Image.open(io.BytesIO(data))
    turns = [None, None, 0, 3, 1, 5, 4, 6, 2]  # Image.Transpose of each orientation
    if turns[orientation] is not None:
        upright = upright.transpose(Image.Transpose(turns[orientation]))
    for i in range(8):
        check(data, i, Cropper(96), upright.convert("RGB"))


@needs_native
def test_every_instruction_set_gives_the_same(files):
    library = native.library()
    cropper = Cropper(97)
    crops = {}
    try:
        for level in range(3):
            if library.eva_input_use(level):
                crops[level] = [cropper(files[i], i) for i in range(12)]
    finally:
        assert any(library.eva_input_use(level) for level in (2, 1, 0))
    for level, results in crops.items():
        assert all(map(np.array_equal, results, crops[0])), f"level {level}"


@needs_native
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_resize_is_pillows(photo, channels):
    mode = {1: "L", 3: "RGB", 4: "RGBX"}[channels]
    image = photo.convert(mode)
    pixels = np.asarray(image).reshape(image.height, image.width, channels)
    draw = np.random.default_rng(0)
    for _ in range(60):
        size = int(draw.choice([224, 97, 33, 14]))
        w, h = int(draw.integers(1, image.width)), int(draw.integers(1, image.height))
        x, y = int(draw.integers(0, image.width - w)), int(draw.integers(0, image.height - h))
        part = pixels[y : y + h, x : x + w]
        out = np.full((3, size, size), 77, np.uint8)
        assert jpeg.resize(part, (0, 0, w, h), size, False, out)
        crop = image.crop((x, y, x + w, y + h)).convert("RGB")
        pillow = np.asarray(crop.resize((size, size), 3)).transpose(2, 0, 1).astype(float)
        exact = [c.convert("F").resize((size, size), 3) for c in crop.split()]
        exact = np.clip(np.stack([np.asarray(c) for c in exact]), 0, 255)
        # Not the same to the last bit: Pillow 13 does the vertical pass first in some shapes.
        assert np.abs(out - exact).mean() <= 1.1 * np.abs(pillow - exact).mean() + 0.02
        assert np.abs(out - pillow).mean() < 0.3 and (np.abs(out - pillow) > 1).mean() < 0.005
        mirrored = np.empty_like(out)
        jpeg.resize(part, (0, 0, w, h), size, True, mirrored)
        assert np.array_equal(mirrored[:, :, ::-1], out)


@needs_native
def test_resize_keeps_flat_images_flat_and_fractions_of_pixels(photo):
    out = np.empty((3, 50, 50), np.uint8)
    for level in (0, 1, 128, 255):
        jpeg.resize(np.full((77, 301, 3), level, np.uint8), (0, 0, 301, 77), 50, False, out)
        assert (out == level).all()
        dot = np.empty((3, 1, 1), np.uint8)
        jpeg.resize(np.full((900, 7, 1), level, np.uint8), (0, 0, 7, 900), 1, False, dot)
        assert (dot == level).all()
    box = (10.3, 20.8, 211.6, 140.1)
    jpeg.resize(np.asarray(photo), box, 50, False, out)
    reference = np.asarray(photo.resize((50, 50), 3, box=box)).transpose(2, 0, 1)
    assert np.abs(out.astype(int) - reference).max() <= 2


def test_box_has_torchvisions_distribution():
    cropper, n = Cropper(8), 6000
    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    theirs = [RandomResizedCrop.get_params(image, (0.2, 1), (3 / 4, 4 / 3)) for _ in range(n)]
    top, left, height, width = np.array(theirs).T
    boxes = [cropper.box(500, 375, i) for i in range(n)]
    for name, values in dict(top=top, left=left, height=height, width=width).items():
        ours = np.array([getattr(b, name) for b in boxes])
        spread = values.std() / math.sqrt(n)
        assert abs(ours.mean() - values.mean()) < 5 * spread, name
        assert abs(ours.std() / values.std() - 1) < 0.05, name
    assert abs(np.mean([b.flip for b in boxes]) - 0.5) < 0.03


@pytest.mark.parametrize("width, height", [(1000, 20), (20, 1000), (1, 1), (3, 700)])
def test_box_of_extreme_images_is_the_centred_fallback(width, height):
    box = Cropper(8, scale=(0.9, 1.0)).box(width, height, 1)
    top, left, h, w = RandomResizedCrop.get_params(
        torch.empty(3, height, width), (0.9, 1.0), (3 / 4, 4 / 3)
    )
    assert (box.left, box.top, box.width, box.height) == (left, top, w, h)


def test_a_crop_is_a_function_of_bytes_and_seed(files, path):
    cropper = Cropper(64)
    first = [cropper(data, i) for i, data in enumerate(files[:12])]
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(cropper, files[:12], range(12)))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[0], cropper(files[0], 99))


def test_flip_mirrors(files, path):
    for i in range(6):
        plain = Cropper(64, flip=0)(files[i], i)
        assert np.array_equal(Cropper(64, flip=1)(files[i], i), plain[:, :, ::-1])


def test_images_and_tensors(photo, path):
    cropper = Cropper(48)
    from_image = cropper(photo, 3)
    tensor = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)
    assert np.array_equal(cropper(tensor, 3), from_image)
    assert np.array_equal(cropper(tensor.contiguous(), 3), from_image)
    grey = cropper(tensor[0], 3)
    assert np.array_equal(grey, cropper(tensor[:1], 3)) and (grey[0] == grey[2]).all()
    reference = expected(photo, cropper.box(*photo.size, 3), 48)
    assert difference(from_image, reference)[1] > 45


def test_out_is_written_in_place(files, path):
    out = np.zeros((2, 3, 40, 40), np.uint8)
    result = Cropper(40)(files[0], 1, out=out[1])
    assert result.base is out or np.shares_memory(result, out)
    assert np.array_equal(out[1], Cropper(40)(files[0], 1)) and not out[0].any()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(size=0), "size"),
        (dict(size=8, scale=(0, 1)), "scale"),
        (dict(size=8, scale=(0.5, 0.2)), "scale"),
        (dict(size=8, scale=(0.5, 1.2)), "scale"),
        (dict(size=8, ratio=(2, 1)), "ratio"),
        (dict(size=8, flip=1.5), "flip"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Cropper(**arguments)


def test_bad_calls(files):
    cropper = Cropper(8)
    with pytest.raises(ValueError, match="uint8"):
        cropper(torch.zeros(3, 9, 9), 0)
    with pytest.raises(ValueError, match="uint8"):
        cropper(torch.zeros(2, 9, 9, dtype=torch.uint8), 0)
    with pytest.raises(TypeError, match="bytes"):
        cropper("a path", 0)
    with pytest.raises(ValueError, match="out must be"):
        cropper(files[0], 0, out=np.zeros((3, 8, 9), np.uint8))


def test_sample_from_bytes(files):
    crop, mask = sample_from_bytes(files[0], 17)
    assert crop.shape == (3, 224, 224) and crop.dtype == np.uint8
    assert mask.shape == (105,) and mask.dtype == np.int32
    assert np.array_equal(crop, Cropper(224)(files[0], 17))
    assert np.array_equal(mask, BlockMasker().indices(np.array([17], np.uint64))[0])
    crop, mask = sample_from_bytes(files[0], 2**64 - 1, size=96, patch=16, count=9)
    assert crop.shape == (3, 96, 96) and mask.shape == (9,) and mask.max() < 36
    assert len(sample_from_bytes(files[0], 1, size=96, patch=16)[1]) == round(36 * 105 / 256)
    with pytest.raises(ValueError, match="multiple of patch"):
        sample_from_bytes(files[0], 1, size=100, patch=14)
