"""Faults of one of two processes: all decide alike, none waits for ever, and no checkpoint is lost."""

import re
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
    status, said, _ = run("nan", tmp_path)
    assert status == 0, said[-2000:]
    found = lines(tmp_path)
    assert [line["skipped_steps"] for line in found] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert found[3]["loss"] is None and all(w.isfinite().all() for w in weights(tmp_path).values())


def test_many_such_steps_take_the_run_back_to_its_last_checkpoint(tmp_path):
    status, said, _ = run("nans", tmp_path)
    assert status == 0, said[-2000:]
    assert "Going back from step 13 to" in said and "on with fresh data (1 more times)" in said
    assert lines(tmp_path)[-1]["step"] == 24 and lines(tmp_path)[-1]["loss"] is not None


@pytest.mark.parametrize(
    "kind, says",
    [
        ("dies", "exitcode  : 3"),
        ("raises", "the disk of this machine is gone"),
        ("sleeps", "another process of the run has ended or does not answer|Timed out"),
    ],
)
def test_one_that_is_gone_ends_all_and_leaves_a_checkpoint(tmp_path, kind, says):
    status, said, seconds = run(kind, tmp_path)
    assert status != 0 and re.search(says, said), said[-3000:]
    found = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None and checkpoint.read_state(found)["step"] in (2, 4)
    assert seconds < 150
