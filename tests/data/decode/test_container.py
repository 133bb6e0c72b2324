"""What lies beside a picture's pixels, sound or not, says nothing against them."""

import functools
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bench.photos import encode, photographs
from eva_fast.data import BadImage, Cropper
from eva_fast.data.checking import check
from eva_fast.data.decode import jpeg
from eva_fast.data.decode.container import content
from eva_fast.data.decode.pillow import decode
from tests.data.pictures import save

BIG = 80 << 20  # unpacked, more than all texts that Pillow takes


@pytest.fixture(scope="module")
def photo():
    image = photographs()[0].crop((100, 50, 260, 170))
    image.info.clear()
    return image


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def segment(marker, body):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def riff(name, body, size=None):
    size = len(body) if size is None else size
    return name + struct.pack("<I", size) + body + b"\0" * (len(body) % 2)


@functools.cache
def png_extras():
    packed = zlib.compress(bytes(BIG), 9)
    text = zlib.compress(b"workflow " * 250_000)
    profile = b"\0".join([b"name", b""])
    return {
        "zTXt of 2 MB": chunk(b"zTXt", b"workflow\0\0" + text),
        "zTXt of 80 MB": chunk(b"zTXt", b"workflow\0\0" + packed),
        "iTXt of 2 MB": chunk(b"iTXt", b"prompt\0\1\0en\0\0" + text),
        "XMP of 80 MB": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + packed),
        "EXIF text of 80 MB": chunk(b"zTXt", b"Raw profile type exif\0\0" + packed),
        "tEXt of 70 MB": chunk(b"tEXt", b"comment\0" + b"x" * (70 << 20)),
        "text of unknown packing": chunk(b"zTXt", b"key\0\7abc"),
        "profile of 80 MB": chunk(b"iCCP", profile + b"\0" + packed),
        "profile of unknown packing": chunk(b"iCCP", profile + b"\7abc"),
        "profile of nothing": chunk(b"iCCP", b""),
        "profile cut": chunk(b"iCCP", profile + b"\0" + text[:50]),
        "EXIF of nothing": chunk(b"eXIf", b""),
        "short sizes": chunk(b"pHYs", b"\0"),
        "short gamma": chunk(b"gAMA", b"\0"),
        "short animation": chunk(b"acTL", b"\0"),
        "wrong checksum": chunk(b"tEXt", b"key\0value")[:-4] + b"none",
    }


@pytest.mark.parametrize("name", png_extras())
def test_png(photo, name):
    good, extra = save(photo, "PNG"), png_extras()[name]
    before = good[:33] + extra + good[33:]  # behind the header
    after = good[:-12] + extra + good[-12:]
    for data in (before, after):
        assert np.array_equal(decode(data).image, photo)
        assert Cropper(32)(data, 0).shape == (3, 32, 32)
    assert np.array_equal(decode(after[: -len(extra) // 2 - 12]).image, photo)  # cut within it


@pytest.mark.parametrize("behind", [b"PK\3\4" * 1000, bytes(100_000), b"\x89PNG\r\n\x1a\n"])
def test_bytes_behind_a_png_and_a_webp(photo, behind):
    for data in (save(photo, "PNG"), save(photo, "WEBP", lossless=True)):
        assert np.array_equal(decode(data + behind).image, photo)


def test_transparency_stays(photo):
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    data = save(palette, "PNG", transparency=0)
    data = data[:33] + chunk(b"tEXt", b"key\0value") + data[33:]
    assert b"tRNS" in content(data).bare and b"tEXt" not in content(data).bare
    assert (np.asarray(decode(data).image) == 255).all()


def jpeg_extras():
    return {
        "EXIF of many segments": segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 60,
        "EXIF of nothing": segment(0xE1, b"Exif\0\0"),
        "XMP of noise": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + bytes(range(256)) * 9),
        "profile of one byte": segment(0xE2, b"ICC_PROFILE\0\1"),
        "profile of missing parts": segment(0xE2, b"ICC_PROFILE\0\3\7" + bytes(50)),
        "broken list of further images": segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
        "resources that end early": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed"),
        "header of nothing": segment(0xE0, b"JFIF\0"),
        "Adobe's of nothing": segment(0xEE, b"Adobe"),
        "comments": segment(0xFE, b"\xff\xda\xff\xd9" * 1000) * 50,
    }


@pytest.mark.parametrize("name", jpeg_extras())
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg(photo, path, name, progressive):
    good = encode(photo, quality=95, progressive=progressive)
    data = good[:20] + jpeg_extras()[name] + good[20:]  # behind its first segment
    assert np.array_equal(decode(data).image, decode(good).image)
    assert np.array_equal(Cropper(32)(data, 3), Cropper(32)(good, 3))


def test_cmyk_keeps_its_meaning(photo):
    good = save(photo.convert("CMYK"), "JPEG", quality=95)
    data = good[:2] + jpeg_extras()["profile of one byte"] + good[2:]
    expected = Image.open(io.BytesIO(good)).convert("RGB")
    assert np.array_equal(decode(data).image, expected)


def test_what_is_behind_a_jpeg(photo, path):
    noise = np.random.default_rng(0).bytes(3 << 20)
    second = encode(photo.rotate(180), progressive=True) * 200
    for progressive in (False, True):
        good = encode(photo, quality=90, progressive=progressive)
        whole = Cropper(32)(good, 5)
        for behind in (noise, second, b"\xff\xda" * 5000, b"text" * 20, bytes(50_000)):
            assert np.array_equal(Cropper(32)(good + behind, 5), whole)
            if progressive and jpeg.available():
                assert jpeg.jpeg_info(good + behind) == (*photo.size, 1)
        cut = good[: len(good) * 2 // 3]
        with pytest.raises(BadImage):
            Cropper(32, scale=(1, 1))(cut + b"text" * 20, 5)


def test_scans_between_which_others_are_written(photo, path):
    """Marks within a comment between scans are no scans and no end."""
    good = encode(photo, progressive=True)
    at = good.rindex(b"\xff\xda")
    data = good[:at] + segment(0xFE, b"\xff\xda\xff\xd9" * 600) + good[at:]
    assert content(data).scans == content(good).scans > 5
    assert np.array_equal(Cropper(32)(data, 5), Cropper(32)(good, 5))
    last = good[at:-2]
    with pytest.raises(BadImage, match="scans are above the limit"):
        Cropper(32)(good[:at] + segment(0xFE, b"\xff\xd9") + last * 600 + good[-2:], 5)


@pytest.mark.parametrize("exact", [True, False])
def test_webp(photo, exact):
    good = save(photo, "WEBP", lossless=True, exif=b"Exif\0\0" + bytes(90), icc_profile=b"\0" * 99)
    for extra in (
        riff(b"EXIF", b"\xff" * 999),
        riff(b"EXIF", b"ab", 90_000),  # cut off
        riff(b"XMP ", bytes(200_000)),
        riff(b"JUNK", b"abc"),
    ):
        data = good + extra
        if exact:
            data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
        assert np.array_equal(decode(data).image, photo)
    alpha = save(photo.convert("RGBA"), "WEBP", lossless=True, exif=b"Exif\0\0" + bytes(90))
    assert np.array_equal(decode(alpha).image, photo)


def test_a_check_of_the_data_takes_what_training_takes(photo, tmp_path):
    good = save(photo, "PNG")
    large = good[:33] + png_extras()["zTXt of 80 MB"] + good[33:]
    (tmp_path / "large.png").write_bytes(large)
    (tmp_path / "good.png").write_bytes(good)
    found = check(tmp_path, image_size=32, patch_size=8)
    assert found["unreadable_count"] == 0 and found["formats"] == {"PNG": 2}
    found = check(tmp_path, image_size=32, patch_size=8, max_megapixels=0.01)
    assert found["unreadable_count"] == 2
    assert "max_megapixels" in found["unreadable"][0]["reason"]
