"""Paths as people give them: lists, arrays, iterators and text files of them, and the home folder."""

import os
from pathlib import Path

import numpy as np
import pytest

from eva_fast.data import open_source
from tests.data.pictures import write_folder, write_shard


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("kind", [str, Path])
def test_a_list_of_the_paths_of_images(tmp_path, kind):
    root = write_folder(tmp_path / "images", 5)
    paths = sorted(root.glob("*"))[::-1]
    source = open_source([kind(path) for path in paths])
    assert [source.name(i) for i in range(5)] == [str(path) for path in paths]
    assert source.read(0) == paths[0].read_bytes()


def test_a_list_of_paths_of_which_one_is_gone(tmp_path):
    root = write_folder(tmp_path / "images", 2)
    with pytest.raises(FileNotFoundError, match=r"1 of the 3 images .*gone\.png"):
        open_source([*map(str, root.glob("*")), str(root / "gone.png")])


@pytest.mark.parametrize("first", ["a comment", "an image", "a blank line"])
def test_a_list_with_a_byte_order_mark(tmp_path, first):
    root = write_folder(tmp_path / "images", 3)
    names = [path.name for path in sorted(root.glob("*"))]
    before = {"a comment": ["# from a spreadsheet"], "an image": [], "a blank line": [""]}[first]
    text = "\r\n".join([*before, *names])
    (root / "list.txt").write_bytes(text.encode("utf-8-sig"))
    source = open_source(root / "list.txt")
    assert [os.path.basename(source.name(i)) for i in range(len(source))] == names


def test_a_list_in_utf_16_is_refused_with_the_remedy(tmp_path):
    root = write_folder(tmp_path / "images", 2)
    (root / "list.txt").write_bytes("\n".join(os.listdir(root)).encode("utf-16"))
    with pytest.raises(ValueError, match="save it as UTF-8"):
        open_source(root / "list.txt")


def _column(paths):
    return pytest.importorskip("pandas", reason="needs pandas").Series(paths)


@pytest.mark.parametrize("kind", [iter, tuple, np.array, lambda paths: map(Path, paths), _column])
def test_paths_as_other_libraries_give_them(tmp_path, kind):
    root = write_folder(tmp_path / "images", 5)
    paths = sorted(map(str, root.glob("*")))
    source = open_source(kind(paths))
    assert [source.name(i) for i in range(len(source))] == paths


def test_a_glob_of_pathlib(tmp_path):
    root = write_folder(tmp_path / "images", 5)
    assert len(open_source(root.glob("*.jpg"))) == 5


@pytest.mark.parametrize(
    "data, count",
    [("~/a", 4), ("~/a:0.5,~/b:0.5", 7), ("~/a,~/b", 7), (["~/a", "~/b"], 7), ("~/b/*.tar", 3),
     (["~/a/00000.jpg", "~/a/00001.jpg"], 2), ("~/a/list.txt", 1)],
)  # fmt: skip
def test_the_home_folder(tmp_path, monkeypatch, data, count):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "a", 4)
    (tmp_path / "b").mkdir()
    write_shard(tmp_path / "b" / "s.tar", range(3))
    (tmp_path / "a" / "list.txt").write_text("00002.jpg\n")
    assert len(open_source(data)) == count


def test_a_home_folder_in_a_list(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "a", 2)
    write_folder(tmp_path / "lists/~", 1)  # a folder that is called so is meant, where there is one
    (tmp_path / "lists/l.txt").write_text("~/a/00001.jpg\n~/00000.jpg\n")
    source = open_source(tmp_path / "lists/l.txt")
    assert [source.name(i) for i in range(2)] == [
        str(tmp_path / "a/00001.jpg"), str(tmp_path / "lists/~/00000.jpg"),
    ]  # fmt: skip
