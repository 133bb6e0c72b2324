"""Pictures of any number of channels: arrays, TIFF and Pillow's formats, and what is refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from eva_fast.data.decode.bands import read_bands
from eva_fast.data.decode.pillow import BadImage

tifffile = pytest.importorskip("tifffile")


def noise(shape, dtype=np.uint16, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tiff(array, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def png(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("dtype", "largest"), [(np.uint8, 255), (np.uint16, 65535), (np.uint32, 4294967295)]
)
def test_whole_numbers_are_scaled_by_their_type(dtype, largest):
    array = noise((5, 7, 4), dtype)
    found = read_bands(npy(array), 4)
    assert found.dtype == np.float32 and found.shape == (4, 5, 7)
    np.testing.assert_allclose(found, array.transpose(2, 0, 1) / largest, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16])
def test_other_numbers_stay_as_they_are(dtype):
    array = noise((6, 5, 7), dtype)
    np.testing.assert_array_equal(read_bands(npy(array), 6), array.astype(np.float32))


def test_dimensions_of_arrays():
    array = noise((5, 7, 3), np.float32)
    for given in (array, np.moveaxis(array, 2, 0).copy(), torch.from_numpy(array)):
        np.testing.assert_array_equal(read_bands(given, 3), np.moveaxis(array, 2, 0))
    grey = array[..., 0]
    np.testing.assert_array_equal(read_bands(npy(grey), 1), grey[None])
    np.testing.assert_array_equal(read_bands(npy(grey[..., None]), 1), grey[None])
    fortran = np.asfortranarray(array)
    np.testing.assert_array_equal(read_bands(npy(fortran), 3), np.moveaxis(array, 2, 0))


@pytest.mark.parametrize(
    ("data", "channels", "reason"),
    [
        (npy(np.zeros((4, 7, 4), np.uint8)), 4, r"4 x 7 x 4 may be \[H,W,C\] or \[C,H,W\]"),
        (npy(np.zeros((4, 7, 5), np.uint8)), 3, "no dimension of 3 channels"),
        (npy(np.zeros((4, 7), np.uint8)), 2, "no dimension of 2 channels"),
        (npy(np.zeros((2, 2, 4, 7), np.uint8)), 2, "is no image"),
        (npy(np.full((4, 7), np.nan, np.float32)), 1, "not finite"),
        (npy(np.zeros((4, 7), np.complex64)), 1, "complex64, which is no kind of number"),
        (npy(np.array([{}], object)), 1, "pickle"),
        (npy(np.zeros((4, 7), np.uint8))[:-3], 1, "."),
        (tiff(np.zeros((5, 8, 9), np.uint8)), 4, "it has 5 channels, and the run reads 4"),
        (tiff(np.zeros((5, 8, 9), np.uint8))[:300], 5, "."),
        (png(Image.new("RGB", (9, 8))), 4, "it has 3 channels"),
        (b"nothing", 2, "not an image"),
    ],
)  # fmt: skip
def test_what_is_refused(data, channels, reason):
    with pytest.raises(BadImage, match=reason):
        read_bands(data, channels)


def test_the_limit_on_pixels():
    for data in (npy(np.zeros((50, 60, 2), np.uint8)), tiff(np.zeros((2, 50, 60), np.uint8))):
        with pytest.raises(BadImage, match="above the limit"):
            read_bands(data, 2, max_megapixels=0.002)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((5, 8, 9), dict(photometric="minisblack")),
        ((8, 9, 5), dict(photometric="minisblack", planarconfig="contig")),
        ((5, 8, 9), dict(photometric="minisblack", planarconfig="separate")),
        ((5, 8, 9), dict(photometric="minisblack", compression="zlib")),
        ((5, 9, 9), dict(photometric="minisblack", bigtiff=True)),
    ],
    ids=["pages", "bands", "planes", "compressed", "big"],
)
def test_tiff_says_what_its_dimensions_are(shape, options):
    array = noise(shape)
    found = read_bands(tiff(array, **options), 5)
    bands = array.transpose(2, 0, 1) if shape[2] == 5 else array
    np.testing.assert_array_equal(found, (bands / 65535).astype(np.float32))


def test_pages_of_colours_and_pillows_pages():
    array = noise((2, 8, 9, 3), np.uint8)
    found = read_bands(tiff(array, photometric="rgb"), 6)
    expected = np.concatenate([page.transpose(2, 0, 1) for page in array]) / 255
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    pages = [Image.fromarray(page[..., 0]) for page in array]
    packed = png(pages[0], "TIFF", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    found = read_bands(packed, 2)
    np.testing.assert_allclose(found, array[..., 0] / 255, rtol=1e-6)


@pytest.mark.parametrize("turned", range(1, 9))
def test_a_tiff_stands_upright(turned):
    array = noise((8, 9), np.uint8)
    data = tiff(array, extratags=[(274, 3, 1, turned, True)])
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # Pillow turns it
        expected = np.asarray(image)
    np.testing.assert_allclose(read_bands(data, 1)[0], expected / 255, rtol=1e-6)


def test_pillows_modes():
    colours = Image.fromarray(noise((8, 9, 3), np.uint8))
    grey16 = Image.fromarray(noise((8, 9)))
    alpha = Image.fromarray(noise((8, 9, 4), np.uint8))
    for image, channels, expected in (
        (colours, 3, np.asarray(colours) / 255),
        (colours, 1, np.asarray(colours.convert("L"))[..., None] / 255),
        (alpha, 4, np.asarray(alpha) / 255),
        (colours.convert("P"), 3, np.asarray(colours.convert("P").convert("RGB")) / 255),
        (grey16, 1, np.asarray(grey16)[..., None] / 65535),
    ):
        for given in (image, png(image)):
            found = read_bands(given, channels)
            np.testing.assert_allclose(found, np.moveaxis(expected, 2, 0), rtol=1e-5, atol=1e-7)
