"""Crops: as Pillow's of the fully decoded image, whatever decodes them and on any machine."""

import io
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop, Resize

from bench.photos import encode, jpegs, photographs
from eva_fast import native
from eva_fast.data import BlockMasker, Cropper, sample_from_bytes
from eva_fast.data.decode import jpeg
from tests.data.pictures import check, difference, expected

needs_native = pytest.mark.skipif(not native.available(), reason="the native library is not built")


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
        monkeypatch.setattr(jpeg, "library", lambda: None)
    return request.param


def test_300_crops_equal_pillows(files, path):
    cropper = Cropper(224)
    results = [check(files[i % len(files)], i, cropper) for i in range(300)]
    means, psnrs = zip(*results)
    assert np.mean(means) < 0.75 and min(psnrs) > 40


@pytest.mark.parametrize("interpolation", ["bilinear", "lanczos", "hamming", "random"])
def test_crops_of_other_filters_equal_pillows(files, path, interpolation):
    """Of JPEGs and PNGs, shrunk, whole or larger than the image."""
    for i in range(60 if interpolation == "bilinear" else 24):
        png = io.BytesIO()
        if i % 3 == 0:
            Image.open(io.BytesIO(files[i])).save(png, "PNG", compress_level=1)
        cropper = Cropper((48, 97, 224, 512)[i % 4], interpolation=interpolation)
        check(png.getvalue() or files[i], i, cropper)


def test_random_is_bilinear_or_bicubic_by_the_seed_alone(files, path):
    drawn = Cropper(64, interpolation="random")
    kinds = [drawn.filter(seed) for seed in range(2000)]
    assert abs(kinds.count("bilinear") - 1000) < 100 and set(kinds) == {"bilinear", "bicubic"}
    flips = np.array([drawn.box(100, 100, seed).flip for seed in range(2000)])
    assert abs(np.corrcoef(flips, np.array(kinds) == "bilinear")[0, 1]) < 0.1
    for seed in range(8):
        fixed = Cropper(64, interpolation=kinds[seed])
        assert np.array_equal(drawn(files[seed], seed), fixed(files[seed], seed))


def test_bilinear_pixels_are_those_of_torchvisions_resize(photo, path):
    """Its default of images; no JPEG lies between, so the two differ by rounding alone."""
    for size in (61, 224, 500):
        whole = dict(scale=(1, 1), ratio=(photo.width / photo.height,) * 2, flip=0)
        found = Cropper(size, **whole, interpolation="bilinear")(photo, 0)
        theirs = Resize((size, size))(photo)
        assert np.abs(found - np.asarray(theirs).transpose(2, 0, 1).astype(int)).max() <= 2
        assert np.abs(Cropper(size, **whole)(photo, 0) - found.astype(int)).max() > 8


def test_300_crops_of_every_kind_equal_pillows(files, path):
    """Layouts, formats and modes; crops small enough for a reduced decode and larger than the image."""
    kinds = [
        ("RGB", "JPEG", dict(quality=90, subsampling=0)),
        ("RGB", "JPEG", dict(quality=75, subsampling=1, progressive=True)),
        ("RGB", "JPEG", dict(quality=85, subsampling=2, progressive=True)),
        ("L", "JPEG", dict(quality=90)),
        ("CMYK", "JPEG", dict(quality=90)),
        ("RGB", "PNG", dict(compress_level=1)),
        ("P", "GIF", {}),
    ]
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
    for i in range(300):
        mode, form, options = kinds[i % len(kinds)]
        buffer = io.BytesIO()
        images[i % len(images)].convert(mode).save(buffer, form, **options)
        check(buffer.getvalue(), i, Cropper((48, 97, 224, 512)[i % 4]))


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
        (dict(size=8, color_jitter=-0.1), "color_jitter must be 0 or more, got -0.1"),
        (
            dict(size=8, interpolation="nearest"),
            "interpolation is one of bicubic, bilinear, .*, got .nearest",
        ),
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
