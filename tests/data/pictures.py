"""Small pictures and data sets for the tests of the input pipeline."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(number: int, size: tuple[int, int] = (40, 32), form: str = "JPEG") -> bytes:
    """A picture of `size` (width, height) that differs for every number."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(buffer, form)
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
