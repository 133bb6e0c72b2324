"""Faults of one of two processes: all decide alike, none waits for ever, and no checkpoint is lost."""

import re
import statistics
import time

import pytest

from eva_fast.train import checkpoint
from tests.train.several import ended, lines, torchrun, weights

pytestmark = [pytest.mark.dist, pytest.mark.slow]


def run(kind, out):
    begun = time.monotonic()
    status, said = ended(torchrun(2, "-m", "tests.train.faulty_worker", kind, str(out)), 200)
    return status, said, time.monotonic() - begun


def test_a_step_that_is_not_finite_on_one_is_skipped_by_all(tmp_path):
    """And which of them is slow is told."""
    status, said, _ = run("nan", tmp_path)
    assert status == 0, said[-2000:]
    found = lines(tmp_path)
    assert [line["skipped_steps"] for line in found] == [0, 0, 0, 1, 1, 1, 1, 1]
    medians = [statistics.median(line["own_ms"][rank] for line in found) for rank in (0, 1)]
    assert medians[1] > 400 and medians[1] > medians[0]
    assert found[3]["loss"] is None and all(w.isfinite().all() for w in weights(tmp_path).values())


def test_many_such_steps_take_the_run_back_to_its_last_checkpoint(tmp_path):
    status, said, _ = run("nans", tmp_path)
    assert status == 0, said[-2000:]
    assert "Going back from step 13 to" in said and "on with fresh data (1 more times)" in said
    assert lines(tmp_path)[-1]["step"] == 24 and lines(tmp_path)[-1]["loss"] is not None


def applied(out):
    """Of both processes, a digit a step."""
    return [out.with_name(f"{out.name}-applied-{rank}").read_text() for rank in (0, 1)]


def test_a_spike_on_one_is_skipped_by_all_and_many_go_back_twice_and_stop(tmp_path):
    """One in step 5; from step 8 on there are no others, also after the ways back to step 6."""
    status, said, _ = run("spikes", tmp_path / "run")
    assert status != 0 and "the loss was a spike in 10 steps in a row" in said, said[-3000:]
    assert applied(tmp_path / "run") == ["1111011" + "0" * 30] * 2
    assert "skipped 1 steps: the loss is a spike" in said
    assert said.count("Going back from step") == 2
    assert [line["skipped_steps"] for line in lines(tmp_path / "run")[:7]] == [0] * 4 + [1] * 3
    found = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert checkpoint.read_state(found)["step"] == 16


@pytest.mark.parametrize(
    "kind, says",
    [
        ("dies", "exitcode  : 3"),
        ("raises", "the disk of this machine is gone"),
        ("sleeps", "another process of the run has ended or does not answer.*Timed out"),
        ("sleeps saving", "another process of the run has ended or does not answer.*Timed out"),
    ],
)
def test_one_that_is_gone_ends_all_and_leaves_a_checkpoint(tmp_path, kind, says):
    status, said, seconds = run(kind, tmp_path)
    assert status != 0 and re.search(says, said), said[-3000:]
    found = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None and checkpoint.read_state(found)["step"] in (2, 4)
    assert seconds < 150


def test_a_part_of_a_checkpoint_that_fails_costs_that_one_alone(tmp_path):
    """On one process, after the parts were written: the others do not wait for its word."""
    status, said, _ = run("unreadable", tmp_path)
    assert status == 0, said[-3000:]
    assert re.search(
        "step_000000004 cannot be written: .*Input/output error.*the run goes on", said
    )
    names = [folder.name for folder in checkpoint.steps_in(tmp_path / "checkpoints")]
    assert names == [checkpoint.name_of(step) for step in (2, 6, 8)]


def test_a_folder_that_not_all_processes_see_is_refused(tmp_path):
    """Each would write its part of a checkpoint into one of its own, and none would be whole."""
    status, said, _ = run("elsewhere", tmp_path)
    assert status != 0 and "run is not one folder for all processes" in said, said[-3000:]


def test_all_go_on_where_torchrun_began_only_one_anew(tmp_path):
    """On each machine it counts the restarts that began there; process 0 may know of none."""
    status, said, _ = run("again", tmp_path)
    assert status == 0 and "going on from" in said, said[-3000:]
