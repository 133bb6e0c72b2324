"""Many samples from a folder in which one file of a hundred is damaged, each in its own way."""

import gc
import json
import os
import re
import struct
import zlib
from pathlib import Path

import pytest

from eva_fast.data import build_loader, open_source
from tests.data.pictures import encoded


def png_header(width, height):
    """The beginning of a PNG file that claims to be `width` x `height` pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def jpeg_of_size(width, height):
    """A JPEG file whose header claims `width` x `height` pixels."""
    raw = bytearray(encoded(3))
    start = raw.index(b"\xff\xc0")
    raw[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(raw)


DAMAGE = {
    "empty": lambda n: b"",
    "cut.jpg": lambda n: encoded(n, (300, 200))[:700],
    "cut.png": lambda n: encoded(n, (300, 200), "PNG")[:2000],
    "cut.webp": lambda n: encoded(n, (300, 200), "WEBP")[:300],
    "text": lambda n: b"<html><body>403 Forbidden</body></html>",
    "noise": lambda n: os.urandom(2000),
    "zeros": lambda n: b"\0" * 2000,
    "bomb.png": lambda n: png_header(60_000, 60_000) + b"\0" * 100,
    "bomb.jpg": lambda n: jpeg_of_size(65_000, 65_000),
    "header": lambda n: encoded(n)[:20],
}
FORMS = ["JPEG", "JPEG", "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]


def write_files(folder, count):
    """`count` files, all named .jpg whatever they hold, one in a hundred damaged; the bad names."""
    good = [encoded(n, (64, 48), FORMS[n % len(FORMS)]) for n in range(64)]
    kinds, bad = list(DAMAGE.items()), set()
    for number in range(count):
        here = folder / f"{number // 1000:03d}"
        here.mkdir(parents=True, exist_ok=True)
        path, data = here / f"{number:06d}.jpg", good[number % len(good)]
        if number % 100 == 37:
            kind, make = kinds[number // 100 % len(kinds)]
            path = here / f"{number:06d}-{kind}.jpg"
            data = make(number)
            bad.add(path.name)
        path.write_bytes(data)
    return bad


def state_of(pid):
    """(resident bytes of its own, open files) of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    own = re.search(r"RssAnon:\s+(\d+)", text)
    return int(own.group(1)) * 1024, len(os.listdir(f"/proc/{pid}/fd"))


def soak(tmp_path, files, samples, batch_size):
    bad = write_files(tmp_path / "files", files)
    record = tmp_path / "bad_images.jsonl"
    source = open_source(tmp_path / "files")
    assert len(source) == files
    watched = []
    with build_loader(
        source, batch_size=batch_size, image_size=28, patch_size=14, mask_count=2, min_block=1,
        workers=2, bad_images=record,
    ) as loader:  # fmt: skip
        count = samples // batch_size
        for number in range(count):
            batch = next(loader)
            assert batch.images.shape == (batch_size, 3, 28, 28)
            if number in (count // 3, count - 1):
                gc.collect()
                watched.append([state_of(p) for p in [os.getpid(), *loader.worker_pids]])
        assert loader.bad_count == len(bad)
    names = [json.loads(line)["name"] for line in record.read_text().splitlines()]
    assert sorted(Path(name).name for name in names) == sorted(bad)
    for (before, files_before), (after, files_after) in zip(*watched):
        assert after - before < 4 << 20
        assert files_after == files_before


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_three_thousand_samples_with_bad_files(tmp_path):
    soak(tmp_path, files=1_000, samples=3_000, batch_size=50)


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_hundred_thousand_samples_with_bad_files(tmp_path):
    soak(tmp_path, files=20_000, samples=100_000, batch_size=100)
