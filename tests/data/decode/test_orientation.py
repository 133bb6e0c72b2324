"""How a picture is turned: the same from every format and through every decoder."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from bench.photos import encode
from eva_fast.data import Cropper, ImageField
from eva_fast.data.decode import jpeg
from eva_fast.data.decode.orientation import orientation, turn
from tests.data.pictures import save

TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # EXIF's number of each struct's integer
WHOLE = dict(scale=(1, 1), ratio=(1.0, 1.5), flip=0.0)


def exif(value, kind=3, order="<", count=1, before=()):
    """A directory with the orientation as an integer of that kind, behind the entries `before`."""
    fields = [
        *before,
        (0x0112, kind, count, struct.pack(order + TYPES[kind], value).ljust(4, b"\0")),
    ]
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(fields))
    entries = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in fields)
    return b"Exif\0\0" + head + entries + bytes(4)


def xmp(value):
    return b'<x:xmpmeta><rdf:Description xmlns:tiff="t" ' + value + b"/></x:xmpmeta>"


def with_xmp(image, kind, packet, **options):
    if kind == "PNG":
        texts = PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", packet, zip=True)
        return save(image, kind, pnginfo=texts, **options)
    if kind == "TIFF":
        return save(image, kind, tiffinfo={**options.get("exif", {}), 700: packet})
    if kind == "JPEG":
        body = b"http://ns.adobe.com/xap/1.0/\0" + packet
        good = save(image, kind, quality=95, **options)
        return good[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + good[2:]
    return save(image, kind, xmp=packet, lossless=True, **options)


def upright(photo, value):
    """The photograph as a file that stores it as it is, with that orientation, shows it."""
    tagged = photo.copy()
    tagged.getexif()[0x0112] = value
    return ImageOps.exif_transpose(tagged)


def same(data, expected):
    """Whether the file, and the file opened by Pillow, give the crop of `expected`."""
    crop = Cropper(48, **WHOLE)
    reference = crop(expected, 1).astype(int)
    opened = Image.open(io.BytesIO(data))
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    return all(
        np.abs(crop(form, 1).astype(int) - reference).mean() < 6 for form in (data, opened, loaded)
    )


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("order", "<>")
def test_every_integer_type(photo, path, kind, order):
    for value in range(1, 9):
        tag = exif(value, kind, order)
        assert orientation(tag, b"") == orientation(tag[6:], b"") == value
    for form in ("JPEG", "PNG", "WEBP"):
        options = dict(lossless=True) if form == "WEBP" else dict(quality=95)
        data = save(photo, form, exif=exif(6, kind, order), **options)
        assert same(data, upright(photo, 6)), form


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_tiff(photo, kind):
    for value in (1, 3, 6, 8):
        data = save(photo, "TIFF", tiffinfo={0x0112: value})
        at = data.index(struct.pack("<HHI", 0x0112, 3, 1))
        entry = struct.pack("<HHII", 0x0112, kind, 1, value)
        assert same(data[:at] + entry + data[at + 12 :], upright(photo, value)), value


@pytest.mark.parametrize(
    "stored",
    [
        b'tiff:Orientation="6"',
        b"tiff:Orientation='6'",
        b'tiff:Orientation = "6"',
        b"><tiff:Orientation>6</tiff:Orientation></a",
        b"><tiff:Orientation rdf:x='y'>\n 6 </tiff:Orientation></a",
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_xmp(photo, path, form, stored):
    assert same(with_xmp(photo, form, xmp(stored)), upright(photo, 6))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_counts_before_xmp(photo, path, form):
    tag = Image.Exif()
    tag[0x0112] = 3
    data = with_xmp(photo, form, xmp(b'tiff:Orientation="6"'), exif=tag)
    assert same(data, upright(photo, 3))
    other = Image.Exif()
    other[0x010F] = "maker"
    assert same(with_xmp(photo, form, xmp(b'tiff:Orientation="6"'), exif=other), upright(photo, 6))


def test_a_png_of_imagemagick(photo, path):
    tag = exif(8)
    texts = PngInfo()
    texts.add_text("Raw profile type exif", f"\nexif\n{len(tag):8}\n{tag.hex()}\n", zip=True)
    assert same(save(photo, "PNG", pnginfo=texts), upright(photo, 8))


@pytest.mark.parametrize(
    "tag, packet",
    [
        (exif(0), b""),
        (exif(9), b""),
        (exif(70000, 4), b""),
        (exif(-6, 9), b""),
        (exif(6, count=2), b""),
        (exif(6, count=0), b""),
        (exif(6)[:-8], b""),
        (exif(6).replace(struct.pack("<HH", 0x0112, 3), struct.pack("<HH", 0x0112, 2)), b""),
        (exif(6).replace(struct.pack("<HH", 0x0112, 3), struct.pack("<HH", 0x0112, 99)), b""),
        (b"Exif\0\0II*\0\xff\xff\xff\xff", b""),
        (b"Exif\0\0II*\0\0\0\0\0" + bytes(40), b""),
        (exif(0), xmp(b'tiff:Orientation="6"')),
        (b"", xmp(b'tiff:Orientation="9"')),
        (b"", xmp(b'tiff:Orientation="60"')),
        (b"", xmp(b'tiff:Orientation="six"')),
        (b"", xmp(b'tiff:Orientation="' + b"9" * 5000 + b'"')),
    ],
)
def test_out_of_range_or_malformed_turns_nothing(photo, path, tag, packet):
    assert orientation(tag, packet) == 1
    assert turn(photo, orientation(tag, packet)) is photo
    data = with_xmp(photo, "JPEG", packet, **(dict(exif=tag) if tag else {}))
    crop = Cropper(48, **WHOLE)
    assert np.abs(crop(data, 1).astype(int) - crop(photo, 1)).mean() < 6


def test_entries_before_the_tag_and_a_second_segment(photo, path):
    maker = (0x010F, 2, 4, b"abc\0")
    assert orientation(exif(6, 4, ">", before=[maker] * 20), b"") == 6
    good = encode(photo, quality=95)
    tag = exif(6, before=[maker] * 20)
    cut = 40  # what does not fit in one segment goes on in the next

    def segment(body):
        return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body

    data = good[:2] + segment(tag[:cut]) + segment(b"Exif\0\0" + tag[cut:]) + good[2:]
    assert same(data, upright(photo, 6))


@pytest.mark.skipif(not jpeg.available(), reason="libjpeg-turbo was not found")
def test_turned_pictures_are_not_left_to_the_device(photo):
    small = photo.resize((60, 40))
    out = np.empty((3, 96, 96), np.uint8)
    field = ImageField(96).decoded_on(torch.device("cpu"))
    cropper = field.field.cropper
    assert cropper.defer(encode(small), 0, out)
    assert cropper.defer(encode(small, exif=exif(6, 4, ">")), 0, out) is None
    assert cropper.defer(with_xmp(small, "JPEG", xmp(b'tiff:Orientation="8"')), 0, out) is None
    assert cropper.defer(encode(small, exif=exif(0)), 0, out)
