"""The index on disk: small, read through windows that are given back, sorted without much memory."""

import multiprocessing
import os
import pickle
import random
import re
import time
from pathlib import Path

import numpy as np
import pytest

from eva_fast.data.index import Index, cached_index
from eva_fast.data.sources.walk import sorted_in_parts

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


def test_two_processes_build_it_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    context = multiprocessing.get_context("fork")
    builds, together = context.Value("i", 0), context.Barrier(3)

    def build():
        builds.value += 1
        time.sleep(0.3)
        yield "folder"
        yield b"0.jpg", None
        return "signature"

    def work():
        together.wait(30)
        assert len(cached_index("shared", lambda index, signature: True, build, "names")) == 1

    processes = [context.Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert builds.value == 1


def test_it_travels_as_its_path(index):
    copy = pickle.loads(pickle.dumps(index))
    assert copy.entry(77) == index.entry(77)
    assert len(pickle.dumps(index)) < 1000


def test_bytes_on_disk(index):
    """30 million of these take 1.5 GB with extents, of 3 GB allowed."""
    size = sum(path.stat().st_size for path in index.folder.iterdir())
    assert size / FILES < 100 / 2


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_looking_up_keeps_little_in_memory(tmp_path):
    """An index of 5 million nameless files, all of it in the system's cache."""
    count = 5_000_000
    ends = 20 * np.arange(1, count + 1, dtype=np.uint64)
    for name, data in {
        "names.ends": ends,
        "names.bytes": np.full(20 * count, ord("x"), np.uint8),
        "groups.ends": np.array([1], np.uint64),
        "groups.bytes": np.array([ord("g")], np.uint8),
        "group_of.u32": np.zeros(count, np.uint32),
        "extents.u64": np.zeros(2 * count, np.uint64),
    }.items():
        data.tofile(tmp_path / name)
    del ends, data
    index = Index(tmp_path)
    for path in tmp_path.iterdir():  # stays mapped, and leaves nothing behind
        path.unlink()

    def mapped():
        found = re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())
        return int(found.group(1)) * 1024

    assert index.entry(count - 1) == (0, "x" * 20)
    before, most = mapped(), 0
    numbers = np.random.default_rng(0).integers(0, count, 5000).tolist()
    for step, number in enumerate(numbers):
        index.entry(number)
        index.extent(number)
        if step % 25 == 0:
            most = max(most, mapped())
    assert most - before < 100 << 20


def test_sorting_in_parts():
    names = [b"%d" % i for i in range(1000)] + [b"a\nb", b"a", b"\xff.jpg"]
    random.Random(0).shuffle(names)
    assert list(sorted_in_parts(names, part=100)) == sorted(names)
    assert list(sorted_in_parts(names)) == sorted(names)
    assert list(sorted_in_parts([])) == []
    assert list(sorted_in_parts(names[:200], part=100)) == sorted(names[:200])
