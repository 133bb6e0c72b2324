"""What a JPEG, PNG or WebP file holds beside its pixels, and the file without it.

Cameras and programs write texts, colour profiles, previews, whole films beside a picture, and write
them wrongly at times. Nothing of that says anything against the pixels, so decoders get the file
without it; what tells how the picture is turned is read here.
"""

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

_MOST_TEXT = (
    4 << 20
)  # bytes unpacked of one text; a packet says how a picture is turned near its start
_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF = b"Exif\0\0"
_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_APP0, _APP1, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
# Within coded data a marker is what follows FF and is neither a stuffed zero nor a restart marker.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_WEBP_PIXELS = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"}
_WEBP_METADATA_FLAGS = 0x20 | 0x08 | 0x04  # VP8X: profile, EXIF, XMP


class Content(NamedTuple):
    """The parts of an image file."""

    bare: bytes
    """The file with its pixels alone; as it was where it is of another format or broken."""
    exif: bytes = b""
    xmp: bytes = b""
    scans: int = 1
    """Of a JPEG: how many times decoding it passes over the pixels."""


def content(data: bytes) -> Content | None:
    """The parts of a JPEG, PNG or WebP file; None for other formats."""
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(_PNG):
        return _png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    return None


def jpeg_metadata(data: bytes) -> tuple[bytes, bytes]:
    """(EXIF, XMP) of a JPEG; either may be empty."""
    exif = xmp = b""
    for marker, start, end in _segments(data):
        if marker == _APP1:
            exif, xmp = _read_app1(data[start + 4 : end], exif, xmp)
    return exif, xmp


def _read_app1(body: bytes, exif: bytes, xmp: bytes) -> tuple[bytes, bytes]:
    if body.startswith(_EXIF):
        exif += body.removeprefix(_EXIF)  # what does not fit in one segment goes on in the next
    elif body.startswith(_JPEG_XMP):
        xmp = body.removeprefix(_JPEG_XMP)
    return exif, xmp


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, where it starts, where its segment ends) of a JPEG, to the first scan's start."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        marker = data[at + 1]
        if marker in (0x00, 0xFF) or marker in _WITHOUT_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        end = at + 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
        yield marker, at, end
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            return
        at = end


def _jpeg(data: bytes) -> Content:
    kept = [data[:2]]
    exif = xmp = b""
    for marker, start, end in _segments(data):
        body = data[start + 4 : end]
        if marker == _START_OF_SCAN:
            scans, last = _scans(data, end)
            return Content(b"".join([*kept, data[start:last]]), exif, xmp, scans)
        if marker == _APP1:
            exif, xmp = _read_app1(body, exif, xmp)
        if _APP0 <= marker <= _APP15 or marker == _COMMENT:
            # These two say what the numbers of a pixel mean; the lengths are the least they have.
            jfif = marker == _APP0 and body.startswith(b"JFIF\0") and len(body) >= 14
            adobe = marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12
            if not jfif and not adobe:
                continue
        kept.append(data[start:end])
    return Content(data, exif, xmp)


def _scans(data: bytes, at: int) -> tuple[int, int]:
    """(scans, where the image ends) of a JPEG whose first scan's data starts at `at`."""
    scans = 1
    while found := _MARKER.search(data, at):
        at, marker = found.end(), found[1][0]
        if marker == _END_OF_IMAGE:
            return scans, at
        scans += marker == _START_OF_SCAN
        if marker not in _WITHOUT_LENGTH:
            at += int.from_bytes(data[at : at + 2], "big")
    return scans, len(data)


def _png(data: bytes) -> Content:
    """Chunks whose name begins with a small letter are beside the pixels, all but transparency."""
    kept = [_PNG]
    exif = xmp = b""
    at = len(_PNG)
    while at + 8 <= len(data):
        name = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if not name.isalpha():
            break
        body = data[at + 8 : end - 4]
        if name[:1].isupper() or name == b"tRNS":
            kept.append(data[at:end])
        elif name == b"eXIf":
            exif = body
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            key, _, value = body.partition(b"\0")
            if key == b"XML:com.adobe.xmp":
                xmp = _png_text(name, value)
            elif key == b"Raw profile type exif":
                exif = exif or raw_profile(_png_text(name, value))
        at = end
        if name == b"IEND":
            break
    else:
        kept.append(data[at:])
    return Content(b"".join(kept), exif, xmp)


def _png_text(name: bytes, value: bytes) -> bytes:
    """The beginning of a text, whatever is wrong further on."""
    packed = name == b"zTXt"
    if name == b"iTXt":
        packed = value[:1] == b"\1"
        value = value[2:].split(b"\0", 2)[-1]
    elif packed:
        value = value[1:]  # the method
    if not packed:
        return value[:_MOST_TEXT]
    try:
        return zlib.decompressobj().decompress(value, _MOST_TEXT)
    except zlib.error:
        return b""


def raw_profile(text: bytes) -> bytes:
    """EXIF as ImageMagick writes it in a PNG's text: a name, a length, then hexadecimal digits."""
    digits = b"".join(text.split(b"\n")[3:])
    try:
        return bytes.fromhex(digits[: len(digits) // 2 * 2].decode("ascii"))
    except ValueError:
        return b""


def _webp(data: bytes) -> Content:
    kept = []
    exif = xmp = b""
    at = 12
    while at + 8 <= len(data):
        name = data[at : at + 4]
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + size
        body = data[at + 8 : end]
        if name in _WEBP_PIXELS:
            if len(body) < size:
                return Content(data, exif, xmp)  # cut off: for the decoder to say
            if name == b"VP8X" and body:
                body = bytes([body[0] & ~_WEBP_METADATA_FLAGS]) + body[1:]
            kept.append(data[at : at + 8] + body + b"\0" * (size % 2))
        elif name == b"EXIF":
            exif = body
        elif name == b"XMP ":
            xmp = body
        at = end + size % 2
    chunks = b"WEBP" + b"".join(kept)
    return Content(b"RIFF" + len(chunks).to_bytes(4, "little") + chunks, exif, xmp)
