"""A walk goes on past a bad entry, and its index is what the disk holds now."""

import time

import pytest

from eva_fast.data import open_source


def _files(folder, count):
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"p{i}.jpg").write_bytes(b"x")  # the walk reads names alone


@pytest.mark.parametrize("name, target", [("x.jpg", "x.jpg"), ("x", "x"), ("y.png", "gone.png")])
def test_links_that_lead_nowhere_are_passed_over(tmp_path, name, target):
    _files(tmp_path / "data", 4)
    (tmp_path / "data" / name).symlink_to(target)
    assert len(open_source(str(tmp_path / "data"))) == 4


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_targets_that_come_later_are_found(tmp_path, kind):
    _files(tmp_path / "data", 1)
    name, target = ("a.jpg", "later/p0.jpg") if kind == "file" else ("a", "later")
    (tmp_path / "data" / name).symlink_to(tmp_path / target)
    time.sleep(1.2)  # a folder younger than this is never taken from the cache
    assert len(open_source(str(tmp_path / "data"))) == 1
    _files(tmp_path / "later", 1)
    assert len(open_source(str(tmp_path / "data"))) == 2
