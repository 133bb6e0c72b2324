"""The folder of a run: one run's alone, given or made up."""

import multiprocessing
import time

import pytest
import torch

from eva_fast.config import Config
from eva_fast.train import checkpoint
from eva_fast.train.checkpoint_writer import Writer
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


def begun(out, *steps, keep=9):
    """A folder with checkpoints of a run, and the options to go on with it."""
    config = Config.from_options({"out": out, "resume": "auto"})
    with Writer(out / "checkpoints", keep) as writer:
        for step in steps:
            writer.start(step, {"w": torch.zeros(3)}, {"options": config.options()})
    return config


def damage(out, step):
    victim = next((out / "checkpoints" / checkpoint.name_of(step)).glob("*.distcp"))
    victim.write_bytes(victim.read_bytes()[:-1])


def test_damaged_checkpoints_do_not_crowd_out_those_that_follow(tmp_path):
    """A run goes on from step 2, and what it saves at step 3 is no older than a damaged step 4."""
    config = begun(tmp_path, 2, 4, 6)
    damage(tmp_path, 4)
    damage(tmp_path, 6)
    with open_folder(config) as (_, found):
        assert found.name == checkpoint.name_of(2)
    begun(tmp_path, 3, keep=1)
    root = tmp_path / "checkpoints"
    assert [folder.name for folder in checkpoint.steps_in(root)] == [checkpoint.name_of(3)]
    assert {p.name for p in root.glob("*.damaged")} == {
        f"{checkpoint.name_of(step)}.damaged" for step in (4, 6)
    }


@pytest.mark.parametrize("resume", ["never", "auto"])
def test_a_run_without_a_whole_checkpoint_does_not_begin_anew_unasked(tmp_path, resume):
    begun(tmp_path, 2, 4)
    damage(tmp_path, 2)
    damage(tmp_path, 4)
    config = Config.from_options({"out": tmp_path, "resume": resume})
    with (
        pytest.raises(
            ValueError, match="already holds a run|no checkpoint of .* is whole: step_0*4"
        ),
        open_folder(config),
    ):
        pass
    assert len(checkpoint.steps_in(tmp_path / "checkpoints")) == 2
