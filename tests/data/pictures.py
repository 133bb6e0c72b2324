"""Small pictures and data sets for the tests of the input pipeline, and how near two crops are."""

import io
import math
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from eva_fast.data.decode.pillow import PILLOWS


def encoded(number: int, size: tuple[int, int] = (40, 32), form: str = "JPEG") -> bytes:
    """A picture of `size` (width, height) that differs for every number."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(buffer, form)
    return buffer.getvalue()


def save(image: Image.Image, kind: str, **options) -> bytes:
    """The picture as a file of that kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_folder(folder: Path, count: int, classes: int = 1, start: int = 0) -> Path:
    """`count` JPEGs below `folder`, spread over `classes` folders, or flat for one class."""
    for number in range(start, start + count):
        here = folder if classes == 1 else folder / f"class{number % classes}"
        here.mkdir(parents=True, exist_ok=True)
        (here / f"{number:05d}.jpg").write_bytes(encoded(number))
    return folder


def write_shard(path: Path, numbers: range, mode: str = "w") -> Path:
    """A tar shard with one JPEG and one text file a sample."""
    with tarfile.open(path, mode) as tar:
        for number in numbers:
            for name, data in (
                (f"kind{number % 3}/{number:05d}.jpg", encoded(number)),
                (f"kind{number % 3}/{number:05d}.txt", b"a caption"),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def expected(image, box, size, interpolation="bicubic"):
    """Pillow's crop, resize and mirror of a decoded image: int [3, size, size]."""
    part = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    pixels = np.asarray(part.resize((size, size), PILLOWS[interpolation])).transpose(2, 0, 1)
    return (pixels[:, :, ::-1] if box.flip else pixels).astype(int)


def difference(crop, reference):
    """(mean absolute error in levels of 255, PSNR in dB)."""
    error = crop.astype(int) - reference
    return np.abs(error).mean(), 10 * math.log10(255**2 / max((error**2).mean(), 1e-10))


def check(data, seed, cropper, image=None):
    """Asserts that the crop is near Pillow's of the whole image: (mean error, PSNR)."""
    image = image or Image.open(io.BytesIO(data)).convert("RGB")
    box = cropper.box(image.width, image.height, seed)
    reference = expected(image, box, cropper.size, cropper.filter(seed))
    mean, psnr = difference(cropper(data, seed), reference)
    assert mean <= 2 and psnr >= 35, f"seed {seed}: mean error {mean:.2f}, PSNR {psnr:.1f} dB"
    return mean, psnr


def jpeg_of_layout(image, factors):
    """A JPEG whose components have the sampling `factors` [(h, v) of Y, Cb, Cr], any that there are.

    Pillow writes only three layouts. But a scan of one component is coded as a grey image is: three
    grey files give the three scans.
    """
    widest, highest = (max(f) for f in zip(*factors))
    frame, scans, tables = b"", b"", b""
    for number, (plane, (h, v)) in enumerate(zip(image.convert("YCbCr").split(), factors), 1):
        size = -(-image.width * h // widest), -(-image.height * v // highest)
        buffer = io.BytesIO()
        plane.resize(size, Image.Resampling.BOX).save(buffer, "JPEG", quality=90)
        data, at = buffer.getvalue(), 2
        tables = b""
        while data[at + 1] != 0xDA:
            end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
            if data[at + 1] in (0xDB, 0xC4):  # quantisation and Huffman tables
                tables += data[at:end]
            at = end
        frame += bytes([number, h << 4 | v, 0])
        scans += (
            b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, number, 0, 0, 63, 0) + data[at + 10 : -2]
        )
    frame = struct.pack(">HBHHB", 17, 8, image.height, image.width, 3) + frame
    return b"\xff\xd8" + tables + b"\xff\xc0" + frame + scans + b"\xff\xd9"
