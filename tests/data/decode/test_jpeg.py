"""The C++ of csrc/input: JPEGs decoded in part, and the bicubic resize."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.photos import encode, jpegs, photographs
from eva_fast import native
from eva_fast.data import Cropper
from eva_fast.data.decode import jpeg
from tests.data.pictures import check, jpeg_of_layout

needs_native = pytest.mark.skipif(not native.available(), reason="the native library is not built")
needs_turbo = pytest.mark.skipif(not jpeg.available(), reason="libjpeg-turbo was not found")


@pytest.fixture(scope="module")
def photo():
    """A photograph of odd size without any symmetry."""
    return photographs()[0].crop((60, 30, 533, 388))


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


USUAL = [(1, 1), (2, 1), (1, 2), (2, 2)]  # of luma, where chroma has (1, 1)


@pytest.mark.parametrize(
    "factors",
    [
        *[[luma, (1, 1), (1, 1)] for luma in [*USUAL, (4, 1), (4, 2), (1, 4), (3, 1)]],
        [(2, 2), (1, 2), (1, 2)],
        [(2, 2), (2, 1), (1, 2)],
        [(2, 1), (1, 2), (1, 2)],
        [(1, 1), (2, 2), (1, 1)],
    ],
    ids=str,
)
def test_sampling_of_every_kind(photo, factors):
    """Other encoders write more layouts than Pillow; libjpeg-turbo 2.1 errs in a part of some."""
    data = jpeg_of_layout(photo, factors)
    assert np.abs(np.asarray(Image.open(io.BytesIO(data))) - np.asarray(photo, int)).mean() < 12
    if jpeg.available() and factors[1:] == [(1, 1), (1, 1)]:
        assert (jpeg.jpeg_info(data) is not None) == (factors[0] in USUAL)
    for i in range(20):
        check(data, i, Cropper(32))
        check(data, i, Cropper(75, scale=(0.05, 1)))


@needs_native
def test_every_instruction_set_gives_the_same():
    files = jpegs(12)
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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_huge_image_leaves_no_memory_behind(photo):
    def resident():
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024

    buffer = io.BytesIO()
    Image.new("RGB", (6000, 6000), "navy").save(buffer, "PNG", compress_level=1)
    small = encode(photo)
    cropper = Cropper(224, scale=(0.9, 1))
    cropper(small, 0)
    before = resident()
    for i in range(4):
        cropper(buffer.getvalue(), i)
        cropper(small, i)
    assert resident() - before < 50 << 20
