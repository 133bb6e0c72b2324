"""Every form of data `open_source` takes, and every mistake it must explain."""

import os
import re
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from eva_fast.data import open_source
from eva_fast.data.sources.builtin import FOLDER
from eva_fast.data.sources.mixed import MixedSource
from tests.data.pictures import encoded, write_folder, write_shard


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("eva_fast.data.sources.streams.PAUSE_SECONDS", 0)
    return tmp_path / "cache" / "eva_fast"


def test_nested_folder_in_the_order_of_paths(tmp_path):
    root = write_folder(tmp_path / "images", 10, classes=3)
    (root / "class0" / "notes.txt").write_text("not an image")
    (root / "class0" / ".hidden.jpg").write_bytes(encoded(0))
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "er" / "UPPER.JPEG").write_bytes(encoded(77))
    source = open_source(root)
    names = [os.path.relpath(source.name(i), root) for i in range(len(source))]
    assert names == sorted(names) and len(names) == 11
    assert source.label(0) == "class0" and source.label(10) == "er"
    assert source.read(10) == encoded(77)
    assert source.read(0) == encoded(0)


def test_flat_folder_has_no_labels(tmp_path):
    source = open_source(str(write_folder(tmp_path / "flat", 3)))
    assert len(source) == 3 and source.label(0) is None


def test_linked_folders_are_followed_once(tmp_path):
    root = write_folder(tmp_path / "a", 2)
    outside = write_folder(tmp_path / "b", 3, start=10)
    (root / "link").symlink_to(outside)
    (root / "loop").symlink_to(root)
    assert len(open_source(root)) == 5


def test_text_file_of_relative_and_absolute_paths(tmp_path):
    folder = write_folder(tmp_path / "images", 3)
    listed = tmp_path / "list.txt"
    listed.write_text(f"# a comment\nimages/00001.jpg\n\n{folder}/00002.jpg\n")
    source = open_source(listed)
    assert len(source) == 2
    assert [source.read(i) for i in range(2)] == [encoded(1), encoded(2)]


def test_shards_by_braces_glob_and_folder(tmp_path):
    for shard in range(3):
        write_shard(tmp_path / f"s-{shard:02d}.tar", range(5 * shard, 5 * shard + 5))
    for data in (f"{tmp_path}/s-{{00..02}}.tar", f"{tmp_path}/s-*.tar", tmp_path):
        source = open_source(data)
        assert len(source) == 15
        assert source.read(7) == encoded(7)
        assert source.label(7) == "kind1" and source.name(7).endswith("s-01.tar/kind1/00007.jpg")


def test_compressed_shards_are_read_into_memory(tmp_path):
    write_shard(tmp_path / "s.tar.gz", range(4), "w:gz")
    source = open_source(tmp_path / "s.tar.gz")
    assert [source.read(i) for i in range(4)] == [encoded(i) for i in range(4)]
    assert source.label(1) == "kind1"


def test_builtin_has_thirteen_classes_and_is_small():
    train, val = open_source("builtin"), open_source("builtin", split="val")
    assert (len(train), len(val)) == (1603, 551)
    labels = {train.label(i) for i in range(len(train))}
    assert len(labels) == 13 and labels == {val.label(i) for i in range(len(val))}
    assert not {train.name(i).split("/")[-1] for i in range(len(train))} & {
        val.name(i).split("/")[-1] for i in range(len(val))
    }
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 5_000_000


def test_lists_and_weights(tmp_path):
    a = write_folder(tmp_path / "a", 6)
    b = write_folder(tmp_path / "b", 4, start=6)
    plain = open_source([str(a), b])
    assert len(plain) == 10
    assert [plain.read(i) for i in range(10)] == [encoded(i) for i in range(10)]
    assert [(p.length, p.draws) for p in plain.parts()] == [(10, 10)]
    for data in ([(a, 0.7), (b, 0.3)], f"{a}:0.7,{b}:.3", f"{a}:7, {b}:3"):
        source = open_source(data)
        assert isinstance(source, MixedSource)
        assert [(p.start, p.length, p.draws) for p in source.parts()] == [(0, 6, 7), (6, 4, 3)]
    assert len(open_source(f"{a},builtin")) == 6 + 1603


@pytest.mark.parametrize("number", [np.float32, np.int64, np.array, torch.tensor, Fraction])
def test_weights_as_other_libraries_give_them(tmp_path, number):
    a, b = write_folder(tmp_path / "a", 6), write_folder(tmp_path / "b", 4)
    parts = open_source([(a, number(7)), (b, number(3))]).parts()
    assert [(part.length, part.draws) for part in parts] == [(6, 7), (4, 3)]


def test_a_pattern_of_images_or_of_folders(tmp_path):
    for name in "abc":
        write_folder(tmp_path / name, 3)
    for data, count in (
        (f"{tmp_path}/a/*.jpg", 3),
        (f"{tmp_path}/[ab]", 6),
        (f"{tmp_path}/{{a,c}}", 6),
    ):
        source = open_source(data)
        assert len(source) == count and source.read(2) == encoded(2)
    assert len(open_source(f"{tmp_path}/[ab]:0.5,{tmp_path}/c:0.5")) == 9
    (tmp_path / "a/note.txt").touch()
    with pytest.raises(ValueError, match="not a whole tar file"):
        open_source(f"{tmp_path}/a/*")


def test_a_mix_within_a_mix_keeps_its_weights(tmp_path):
    a, b, c = (write_folder(tmp_path / name, 10) for name in "abc")

    def draws(data):
        return [(part.start, part.length, part.draws) for part in open_source(data).parts()]

    assert draws([f"{a}:0.75,{b}:0.25", c]) == [(0, 10, 15), (10, 10, 5), (20, 10, 10)]
    inner = open_source([(a, 0.8), (b, 0.2)])
    assert draws([(inner, 0.5), (c, 0.5)]) == [(0, 10, 12), (10, 10, 3), (20, 10, 15)]
    assert draws([[a, b], c]) == [(0, 30, 30)]


def test_index_follows_changes_of_the_folder(tmp_path):
    root = write_folder(tmp_path / "images", 4, classes=2)
    assert len(open_source(root)) == 4
    (root / "class1" / "new.png").write_bytes(encoded(9, form="PNG"))
    assert len(open_source(root)) == 5
    (root / "class1" / "new.png").unlink()
    write_folder(root / "class2", 1)
    assert len(open_source(root)) == 5


def test_index_is_reused_while_nothing_changes(tmp_path, cache, monkeypatch):
    root = write_folder(tmp_path / "images", 4, classes=2)
    write_shard(tmp_path / "s.tar", range(3))
    past = time.time() - 100
    for path in [root, root / "class0", root / "class1", tmp_path / "s.tar"]:
        os.utime(path, (past, past))
    for data in (root, tmp_path / "s.tar"):
        assert len(open_source(data)) in (4, 3)
    built = {path: path.stat().st_mtime_ns for path in cache.glob("index-*/index.json")}
    assert len(built) == 2
    for data in (root, tmp_path / "s.tar"):
        assert len(open_source(data)) in (4, 3)
    assert built == {p: p.stat().st_mtime_ns for p in cache.glob("index-*/index.json")}
    write_shard(tmp_path / "s.tar", range(7))
    assert len(open_source(tmp_path / "s.tar")) == 7


def test_a_damaged_cache_is_built_again(tmp_path, cache):
    root = write_folder(tmp_path / "images", 4)
    os.utime(root, (1, 1))
    open_source(root)
    (stored,) = cache.glob("index-*/names.ends")
    stored.write_bytes(b"half")
    assert len(open_source(root)) == 4


# ---- mistakes ----


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with says(ValueError, "cache folder", "cannot be written", "XDG_CACHE_HOME"):
        open_source(write_folder(tmp_path / "images", 1))


def says(error, *words):
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, words)))


def test_missing_things_are_named(tmp_path):
    with says(FileNotFoundError, "nowhere", "does not exist", "a folder of images"):
        open_source(tmp_path / "nowhere")
    write_shard(tmp_path / "s-0.tar", range(2))
    with says(FileNotFoundError, "2 of 3 shards do not exist", "s-1.tar"):
        open_source(f"{tmp_path}/s-{{0..2}}.tar")
    with says(FileNotFoundError, "no file matches", "x-*.tar"):
        open_source(f"{tmp_path}/x-*.tar")
    (tmp_path / "list.txt").write_text("gone.jpg\n")
    with says(FileNotFoundError, "1 of the paths", "gone.jpg"):
        open_source(tmp_path / "list.txt")
    with says(FileNotFoundError, "cannot open", "gone.tar", "No such file"):
        open_source(f"file://{tmp_path}/gone.tar")


def test_no_image_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with says(ValueError, "no image found in", "empty", ".jpg"):
        open_source(tmp_path / "empty")
    (tmp_path / "empty" / "x.txt").write_text("x")
    with says(ValueError, "names no path"):
        (tmp_path / "none.txt").write_text("\n# nothing\n")
        open_source(tmp_path / "none.txt")
    write_shard(tmp_path / "good.tar", range(2))
    write_shard(tmp_path / "none.tar", range(0))
    write_shard(tmp_path / "none.tar.gz", range(0), "w:gz")
    with says(ValueError, "no image found in the shard", "none.tar"):
        open_source(f"{tmp_path}/{{good,none}}.tar")
    with says(ValueError, "no image found in the shard", "none.tar.gz"):
        open_source(tmp_path / "none.tar.gz")
    with says(ValueError, "no image found in the shard", "none.tar"):
        open_source(f"pipe:cat {tmp_path}/none.tar")


def broken(path: Path, how: str) -> Path:
    raw = bytearray(write_shard(path, range(6)).read_bytes())
    if how == "truncated":
        raw = raw[: len(raw) // 2 + 100]
    elif how == "garbage in the middle":
        start = len(raw) // 2 // 512 * 512
        raw[start : start + 4096] = os.urandom(4096)
    elif how == "not a tar":
        raw = bytearray(os.urandom(5000))
    else:
        raw = bytearray()
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("how", ["truncated", "garbage in the middle", "not a tar", "zero bytes"])
@pytest.mark.parametrize("form", ["{}", "pipe:cat {}", "file://{}"], ids=["file", "pipe", "url"])
def test_broken_shards_are_named(tmp_path, how, form):
    path = broken(tmp_path / "bad.tar", how)
    with says(ValueError, "bad.tar", "is not a whole tar file"):
        open_source(form.format(path))


def test_a_truncated_compressed_shard_is_named(tmp_path):
    path = write_shard(tmp_path / "bad.tar.gz", range(6), "w:gz")
    path.write_bytes(path.read_bytes()[:-200])
    with says(ValueError, "bad.tar.gz", "is not a whole tar file"):
        open_source(path)


def test_failing_commands_and_unknown_protocols(tmp_path):
    with says(ValueError, "exit 3", "exit code 3"):
        open_source("pipe:exit 3")
    path = write_shard(tmp_path / "s.tar", range(2))
    with says(ValueError, "exit code 4"):
        open_source(f"pipe:cat {path}; exit 4")
    with says(ValueError, "nosuch"):
        open_source("nosuch://bucket/a.tar")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", ["no data given", "builtin"]),
        ("a,,b", ["an empty name"]),
        ([], ["must not be empty"]),
        ("shard-{0..3.tar", ["unmatched brace"]),
        ("shard-{5..3}.tar", ["runs backwards"]),
        ("shard-{abc}.tar", ["neither a range"]),
        ("builtin,builtin:0.5", ["either every source", "has a weight"]),
        ([("builtin", 0), ("builtin", 1)], ["a weight above 0"]),
    ],
)
def test_text_that_makes_no_sense(data, words):
    with says(ValueError, *words):
        open_source(data)


def test_unknown_split_and_file(tmp_path):
    with says(ValueError, "train and val", "'test'"):
        open_source("builtin", split="test")
    (tmp_path / "image.jpg").write_bytes(encoded(0))
    with says(ValueError, "neither a folder, nor a .tar shard, nor a .txt list"):
        open_source(tmp_path / "image.jpg")


def test_wrong_objects_are_named():
    with says(TypeError, "cannot read images from a dict"):
        open_source({"a": 1})
    with says(TypeError, "can only be iterated"):
        open_source(iter([1]))
