"""Writes that are whole or not there, folders of one's own, and where the cache is."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from eva_fast.files import atomic_write, cache_folder, cpu_count, fresh_folder, locked


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


def test_each_that_asks_at_once_gets_a_folder_of_its_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(fresh_folder, [tmp_path / "runs" / "name"] * 8))
    assert len(set(found)) == 8 and all(folder.is_dir() for folder in found)
    assert {"name", "name-2", "name-8"} <= {folder.name for folder in found}


HOLD = """
import sys, time
from pathlib import Path
from eva_fast.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_one_process_s_until_that_ends_however_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("eva_fast.files.LOCK_SECONDS", 0.1)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another run is writing"), locked(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError("no locks here")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with locked(tmp_path):
        assert "no locks here" in caplog.text
