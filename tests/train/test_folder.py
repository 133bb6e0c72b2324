"""The folder of a run: one run's alone, given or made up."""

import multiprocessing
import time

import pytest

from eva_fast.config import Config
from eva_fast.train.folder import open_folder


def test_runs_without_a_folder_in_one_second_get_one_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    with open_folder(Config()) as (first, _), open_folder(Config()) as (second, _):
        assert first != second
    with open_folder(Config()) as (third, _):
        assert third not in (first, second)
    assert [folder.name for folder in (first, second)] == [
        "eva_ti_patch16_96-now",
        "eva_ti_patch16_96-now-2",
    ]


def _own_folder(gate, found):
    gate.wait()
    with open_folder(Config()) as (out, _):
        found.put(str(out))
        gate.wait()


def test_processes_that_start_in_one_second_get_a_folder_each(tmp_path, monkeypatch):
    """Real ones, at once, and all of them at work until the last has its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    forks = multiprocessing.get_context("fork")
    gate, found = forks.Barrier(6), forks.SimpleQueue()
    runs = [forks.Process(target=_own_folder, args=(gate, found)) for _ in range(6)]
    for run in runs:
        run.start()
    folders = {found.get() for _ in runs}
    for run in runs:
        run.join(60)
    assert len(folders) == 6 and not any(run.exitcode for run in runs)


@pytest.mark.parametrize("resume", ["never", "auto"])
def test_a_folder_that_another_run_writes_to_is_refused(tmp_path, monkeypatch, resume):
    monkeypatch.setattr("eva_fast.files.LOCK_SECONDS", 0.1)
    config = Config.from_options({"out": tmp_path / "run", "resume": resume})
    with open_folder(config), pytest.raises(ValueError, match="another run"), open_folder(config):
        pass
    with open_folder(config) as (out, found):
        assert out == tmp_path / "run" and found is None


def test_one_folder_by_two_names_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr("eva_fast.files.LOCK_SECONDS", 0.1)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "run").mkdir()
    first, second = (Config.from_options({"out": tmp_path / name}) for name in ("run", "link"))
    with open_folder(first), pytest.raises(ValueError, match="another run"), open_folder(second):
        pass
