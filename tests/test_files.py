"""Writes that are whole or not there, and where the cache is."""

import os
import stat

import pytest

from eva_fast.files import atomic_write, cache_folder, cpu_count


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with atomic_write(path) as draft:
        draft.write_text("old")
    with pytest.raises(KeyError), atomic_write(path) as draft:
        draft.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_the_umask_holds(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "file") as draft:
            draft.touch(mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("kernels") == tmp_path / "eva_fast" / "kernels"


def test_cpu_count_is_that_of_the_affinity():
    assert 1 <= cpu_count() <= (os.cpu_count() or 1)
