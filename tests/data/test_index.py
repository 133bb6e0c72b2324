"""The index on disk: small, read through windows that are given back, sorted without much memory."""

import os
import pickle
import random
import re
from pathlib import Path

import numpy as np
import pytest

from eva_fast.data.folders import sorted_in_parts
from eva_fast.data.index import cached_index

FILES, FOLDERS = 400_000, 500


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Names such as ImageNet-21K's."""

    def build():
        for folder in range(FOLDERS):
            yield f"n{folder:08d}"
            for file in range(FILES // FOLDERS):
                yield b"n%08d_%d.JPEG" % (folder, file), (512 * file, 100_000 + file)
        return "signature"

    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    try:
        return cached_index("names", lambda index, signature: True, build, "names")
    finally:
        del os.environ["XDG_CACHE_HOME"]
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


def test_entries(index):
    assert len(index) == FILES
    for number in (0, 1, 799, 800, 123_456, FILES - 1):
        group, name = index.entry(number)
        folder, file = divmod(number, FILES // FOLDERS)
        assert (group, name) == (folder, f"n{folder:08d}_{file}.JPEG")
        assert index.groups[group] == f"n{folder:08d}"
        assert index.extent(number) == (512 * file, 100_000 + file)


def test_a_shuffled_list_names_each_folder_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def build():
        for number in random.Random(0).sample(range(3000), 3000):
            yield f"a folder with a long name {number % 7}"
            yield b"%d.jpg" % number, None

    found = cached_index("shuffled", lambda index, signature: True, build, "names")
    assert len(found) == 3000 and len(found.groups) == 7
    for number in range(0, 3000, 100):
        group, name = found.entry(number)
        assert found.groups[group].endswith(f" {int(name[:-4]) % 7}")


def test_it_travels_as_its_path(index):
    copy = pickle.loads(pickle.dumps(index))
    assert copy.entry(77) == index.entry(77)
    assert len(pickle.dumps(index)) < 1000


def test_bytes_on_disk(index):
    """30 million of these take 1.5 GB with extents, of 3 GB allowed."""
    size = sum(path.stat().st_size for path in index.folder.iterdir())
    assert size / FILES < 100 / 2


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_looking_up_keeps_little_in_memory(index):
    def mapped():
        found = re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())
        return int(found.group(1)) * 1024

    index.entry(0)
    before, most = mapped(), 0
    for _ in range(20):
        for number in np.random.default_rng(0).integers(0, FILES, 1000).tolist():
            index.entry(number)
            index.extent(number)
        most = max(most, mapped())
    assert most - before < 100 << 20


def test_sorting_in_parts():
    names = [b"%d" % i for i in range(1000)] + [b"a\nb", b"a", b"\xff.jpg"]
    random.Random(0).shuffle(names)
    assert list(sorted_in_parts(names, part=100)) == sorted(names)
    assert list(sorted_in_parts(names)) == sorted(names)
    assert list(sorted_in_parts([])) == []
    assert list(sorted_in_parts(names[:200], part=100)) == sorted(names[:200])
