"""Every format becomes upright RGB; everything undecodable becomes BadImage, with a reason."""

import functools
import io
import math
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bench.photos import encode, photographs
from eva_fast import native
from eva_fast.data import Cropper
from eva_fast.data.decode import jpeg
from eva_fast.data.decode.pillow import BadImage, check_size, decode, to_rgb
from tests.data.pictures import check, save


def pixels(data):
    return np.asarray(decode(data).image)


def near(image, reference, levels):
    return np.abs(image.astype(int) - np.asarray(reference).astype(int)).mean() <= levels


@pytest.mark.parametrize(
    "kind, options, levels",
    [
        ("PNG", {}, 0),
        ("WEBP", dict(lossless=True), 0),
        ("WEBP", dict(quality=90), 5),
        ("BMP", {}, 0),
        ("TIFF", dict(compression="tiff_lzw"), 0),
        ("GIF", {}, 12),
        ("PPM", {}, 0),
        ("JPEG", dict(progressive=True, quality=95), 5),
        ("JPEG", dict(subsampling="4:1:1", quality=95), 5),
    ],
    ids=str,
)
def test_formats(photo, path, kind, options, levels):
    data = save(photo, kind, **options)
    assert near(pixels(data), photo, levels)
    assert Cropper(32)(data, 0).shape == (3, 32, 32)


def test_grey_and_its_16_bit_forms(photo, path):
    grey = photo.convert("L")
    reference = grey.convert("RGB")
    assert near(pixels(save(grey, "PNG")), reference, 0)
    assert near(pixels(save(grey, "JPEG", quality=95)), reference, 3)
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert near(pixels(save(wide, "PNG")), reference, 0)
    assert near(pixels(save(wide, "TIFF")), reference, 0)
    real = Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    assert near(pixels(save(real, "TIFF")), reference, 0)
    whole = Image.fromarray(np.asarray(grey).astype(np.int32) * 257)
    assert near(np.asarray(to_rgb(whole)), reference, 0)
    one_bit = grey.convert("1")
    assert near(pixels(save(one_bit, "PNG")), one_bit.convert("RGB"), 0)


def test_palette_and_cmyk(photo, path):
    palette = photo.convert("P", palette=Image.Palette.ADAPTIVE)
    assert near(pixels(save(palette, "PNG")), palette.convert("RGB"), 0)
    cmyk = photo.convert("CMYK")
    data = save(cmyk, "JPEG", quality=95)
    assert jpeg.jpeg_info(data) is None
    assert near(pixels(data), photo, 4)
    assert near(Cropper(40, scale=(1, 1), flip=0)(data, 0), _crop(photo), 8)


def _crop(image):
    return Cropper(40, scale=(1, 1), flip=0)(image, 0)


def test_rgb_stored_in_a_jpeg_is_not_taken_for_ycbcr(photo, path):
    """The Adobe marker's transform 0, without JFIF, says that the components are R, G and B."""
    data = save(photo, "JPEG", quality=95, keep_rgb=True, subsampling=0)
    assert near(pixels(data), photo, 3)
    assert near(_crop(data), _crop(photo), 3)


def test_transparency_is_composited_on_white(photo):
    alpha = Image.new("L", photo.size, 0)
    alpha.paste(128, (0, 0, 80, 120))
    alpha.paste(255, (0, 0, 40, 120))
    image = photo.copy()
    image.putalpha(alpha)
    expected = np.asarray(photo).astype(float)
    weight = np.asarray(alpha)[..., None] / 255
    expected = expected * weight + 255 * (1 - weight)
    assert np.abs(pixels(save(image, "PNG")) - expected).max() <= 1
    assert np.abs(pixels(save(image, "WEBP", lossless=True)) - expected).max() <= 1
    assert np.abs(pixels(save(image.convert("LA"), "PNG"))[:, 80:] - 255).max() == 0

    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 1), 1)
    shown = pixels(save(palette, "PNG", transparency=0))
    assert (shown[0, 0] == 255).all() and tuple(shown[1, 1]) == (200, 100, 50)
    keyed = pixels(save(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3)))
    assert (keyed == 255).all()


def test_animation_gives_the_first_frame(photo):
    frames = [photo, photo.transpose(Image.Transpose.ROTATE_180)]
    for kind, levels in (("GIF", 12), ("WEBP", 6), ("PNG", 0), ("TIFF", 0)):
        data = save(frames[0], kind, save_all=True, append_images=frames[1:])
        assert near(pixels(data), photo, levels), kind


def png_claiming(width, height):
    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body)


def jpeg_claiming(data, width, height):
    """The file with other numbers in its frame header."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def with_scans(progressive, count):
    """The last scan of a progressive JPEG, which refines it by one bit, written again and again."""
    last = progressive.rindex(b"\xff\xda")
    return progressive[:-2] + progressive[last:-2] * count + progressive[-2:]


@functools.cache
def bad_files():
    image = photographs()[1].crop((0, 0, 200, 150))
    good, thumbnail = encode(image, quality=90), encode(image.resize((16, 12)))
    exif = b"\xff\xe1" + struct.pack(">H", 8 + len(thumbnail)) + b"Exif\0\0" + thumbnail
    with_thumbnail = good[:2] + exif + good[2:]
    png, webp = save(image, "PNG"), save(image, "WEBP")
    at = png.index(b"IDAT") + 400
    return {
        "empty": b"",
        "one byte": b"\xff",
        "text": b"this is not an image" * 50,
        "page called .jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "zeros": bytes(5000),
        "jpeg start only": good[:2],
        "jpeg header cut": good[:100],
        "jpeg cut in half": good[: len(good) // 2],
        "jpeg without its last rows": good[: int(len(good) * 0.97)],
        "jpeg cut, whole thumbnail in front": with_thumbnail[: len(with_thumbnail) * 2 // 3],
        "jpeg progressive cut": encode(image, progressive=True)[:1200],
        "jpeg bomb": jpeg_claiming(good, 60000, 60000),
        "jpeg of too many scans": with_scans(encode(image, progressive=True), 600),
        "jpeg without height": jpeg_claiming(good, 200, 0),
        "png cut": png[: len(png) // 2],
        "png damaged": png[:at] + bytes(200) + png[at + 200 :],
        "png bomb": png_claiming(50_000, 50_000),
        "webp cut": webp[: len(webp) // 2],
        "gif cut": save(image, "GIF")[:200],
        "tiff cut": save(image, "TIFF")[:100],
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", bad_files())
def test_bad_images(path, name):
    data = bad_files()[name]
    for seed in range(6):  # whatever part of the image the crop needs
        with pytest.raises(BadImage) as error:
            Cropper(32)(data, seed)
        reason = error.value.reason
        assert 3 < len(reason) <= 200 and "\n" not in reason


def test_a_wrong_name_is_no_fault(photo, path):
    """Only the contents count: a PNG among the JPEGs is decoded as what it is."""
    assert Cropper(32)(save(photo, "PNG"), 0).shape == (3, 32, 32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
    ],
    ids=["no header", "empty", "directory outside", "entries outside"],
)
def test_damaged_exif_says_nothing_against_the_pixels(photo, path, kind, exif):
    data = save(photo, kind, exif=exif, quality=95)
    assert near(pixels(data), photo, 6)
    assert near(_crop(data), _crop(photo), 6)


@pytest.mark.skipif(not native.available(), reason="the native library is not built")
def test_damaged_jpegs_never_do_worse_than_raise(photo):
    """Random bytes overwritten, cut out or doubled: a crop or BadImage, never another error."""
    draw = np.random.default_rng(0)
    files = [
        encode(photo.resize((90, 70)), subsampling=s, restart_marker_blocks=r, quality=85)
        for s in (0, 1, 2)
        for r in (0, 3)
    ]
    outcomes = {"crop": 0, "bad": 0}
    for i in range(900):
        data = bytearray(files[i % len(files)])
        limit = len(data) if i % 2 else 700
        for _ in range(int(draw.integers(1, 6))):
            data[int(draw.integers(0, min(limit, len(data))))] = int(draw.integers(0, 256))
        at, n = int(draw.integers(0, len(data))), int(draw.integers(0, 40))
        if i % 5 == 0:
            del data[at : at + n]
        elif i % 7 == 0:
            data[at:at] = data[at : at + n]
        try:
            assert Cropper(24)(bytes(data), i).shape == (3, 24, 24)
            outcomes["crop"] += 1
        except BadImage:
            outcomes["bad"] += 1
    assert min(outcomes.values()) > 50


def test_check_size():
    check_size(10, 10)
    check_size(16_384, 12_288)  # telephones of 200 megapixels
    with pytest.raises(BadImage, match=r"10x10 is 0.0001 megapixels.*max_megapixels=5e-05"):
        check_size(10, 10, 50e-6)
    with pytest.raises(BadImage, match=r"20000x20000 is 400 megapixels.*max_megapixels=250"):
        check_size(20_000, 20_000)
    check_size(10**6, 10**6, math.inf)
    with pytest.raises(BadImage, match="no pixels"):
        check_size(0, 5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("limit", [100, 15_000])  # Pillow warns above it and refuses above twice it
def test_pillows_limit_is_neither_ours_nor_touched(photo, path, kind, limit, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    data = save(photo, kind, **(dict(lossless=True) if kind == "WEBP" else {}))
    opened = Image.open(io.BytesIO(data))
    cropper = Cropper(32, scale=(1, 1), ratio=(1, 2), flip=0)
    expected = cropper(data, 0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert np.array_equal(cropper(data, 0), expected)
    assert np.abs(cropper(opened, 0).astype(int) - expected).mean() < 2
    with pytest.raises(BadImage, match="160x120 is 0.0192 megapixels.*max_megapixels=0.019;"):
        Cropper(32, max_megapixels=0.019)(data, 0)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_photograph_of_a_large_camera(path):
    """102 megapixels, more than Pillow opens without a warning; in grey, which is quicker."""
    grey = Image.new("L", (11_648, 8_736), 99)
    data = save(grey, "JPEG")
    assert near(Cropper(32)(data, 0), 99, 1)
    with pytest.raises(BadImage, match="11648x8736 is 101.757 megapixels.*max_megapixels=90;"):
        Cropper(32, max_megapixels=90)(data, 0)


def test_what_is_done_in_parts_is_what_pillow_does_at_once(photo):
    """68 megapixels that are not a JPEG: converted by strips, and reduced before the crop."""
    image = photo.convert("L").resize((9_000, 7_600), Image.Resampling.BILINEAR)
    data, cropper = save(image, "BMP"), Cropper(64, scale=(1, 1), flip=1.0)
    colours = image.convert("RGB")
    assert np.array_equal(pixels(data)[::97, ::89], np.asarray(colours)[::97, ::89])
    check(data, 1, cropper, colours)


def test_reduced_decode_of_a_large_jpeg(photo):
    big = encode(photo.resize((801, 603)), quality=95)
    result = decode(big, lambda width, height: 5.9)
    assert (result.width, result.height, result.divisor) == (801, 603, 4)
    assert result.image.size == (201, 151)
    assert decode(big).divisor == 1 and decode(big).image.size == (801, 603)
    png = decode(save(photo, "PNG"), lambda width, height: 8)
    assert png.divisor == 1 and (png.width, png.height) == photo.size
