"""A run of two processes, killed at random moments of training and saving until it is done, ends with
the weights of one that nobody disturbed, bit for bit.

    pytest -m soak tests/soak/test_kills.py            50 kills; EVA_FAST_KILLS says another number
"""

import os
import random
import signal
import time

import pytest

from eva_fast.train import checkpoint
from tests.train.several import done, ended, furthest, pretrain, weights, workers_of

OPTIONS = {
    "steps": 400,
    "checkpoint_every": 3,
    "sharding": "full",
    "ema": 0.9,
    "keep_checkpoints": 2,
}
SEED = 11


def kill_until(out, kills):
    """Starts the run again and again; how often it was killed, and with which last words."""
    chance = random.Random(SEED)
    for count in range(kills):
        before = checkpoint.steps_in(out / "checkpoints")
        run = pretrain(2, out, resume="auto", **OPTIONS)
        # some while it starts, most after its first new checkpoint, when it trains and saves
        if chance.random() < 0.8:
            end = time.monotonic() + 120
            while checkpoint.steps_in(out / "checkpoints") == before and run.poll() is None:
                assert time.monotonic() < end, "no progress"
                time.sleep(0.005)
            time.sleep(chance.random() * 0.3)
        else:
            time.sleep(chance.random() * 8)
        if run.poll() is None:
            workers = workers_of(run)
            for pid in workers if chance.random() < 0.5 else workers[-1:]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        status, said = ended(run)
        assert "Traceback" not in said or status != 0, said[-3000:]
        found = checkpoint.newest(out / "checkpoints")
        assert found is not None or count < 5, "every checkpoint is damaged"
    done(pretrain(2, out, resume="auto", **OPTIONS))


@pytest.mark.soak
def test_fifty_kills_change_nothing(tmp_path):
    kill_until(tmp_path / "killed", int(os.environ.get("EVA_FAST_KILLS", "50")))
    done(pretrain(2, tmp_path / "whole", **OPTIONS))
    assert furthest(weights(tmp_path / "killed"), weights(tmp_path / "whole")) == 0


@pytest.mark.slow
@pytest.mark.dist
def test_a_kill_changes_nothing(tmp_path, monkeypatch):
    """The same, short."""
    monkeypatch.setitem(OPTIONS, "steps", 24)
    kill_until(tmp_path / "killed", 1)
    done(pretrain(2, tmp_path / "whole", **OPTIONS))
    assert furthest(weights(tmp_path / "killed"), weights(tmp_path / "whole")) == 0
