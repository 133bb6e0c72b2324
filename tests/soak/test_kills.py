"""A run, killed at random moments of starting, training and saving until it is done, ends with the
weights of one that nobody disturbed, bit for bit: of one process, and of two.

    pytest -m soak -s tests/soak/test_kills.py         50 kills each; EVA_FAST_KILLS says another number
"""

import os
import random
import time
from collections import Counter

import pytest

from eva_fast.train import checkpoint
from tests.soak.runs import Run
from tests.train.several import OPTIONS as SMALL
from tests.train.several import furthest, weights

OPTIONS = {
    **SMALL,
    "steps": 1000,
    "checkpoint_every": 8,
    "sharding": "full",
    "ema": 0.9,
    "keep_checkpoints": 2,
}
SEED = 11
AIMS = ("starting", "training", "training", "saving", "saving")


def kill_until(folder, kills, processes):
    """Starts the run again and again, each time killed at another moment, and lets it end; {where the
    kills hit: how often}."""
    out, options = folder / "killed", {**OPTIONS, "out": folder / "killed", "resume": "auto"}
    chance, hits = random.Random(SEED), Counter()
    for count in range(kills):
        begun, before = time.time(), checkpoint.steps_in(out / "checkpoints")
        run = Run(processes, folder / f"killed-{count}.log", **options)
        aim = chance.choice(AIMS)
        if aim == "starting":
            time.sleep(chance.random() * 2)
        elif aim == "training":
            wait(run, lambda: checkpoint.steps_in(out / "checkpoints") != before)  # noqa: B023
            wait(run, lambda: not drafts(out, begun))  # noqa: B023
            time.sleep(chance.random() * 0.05)
        else:
            wait(run, lambda: drafts(out, begun))  # noqa: B023
            time.sleep(chance.random() * 0.03)
        run.kill(*(range(processes) if chance.random() < 0.5 else [processes - 1]))
        saving = drafts(out, begun)
        assert all(run.ended()), run.said()
        came = checkpoint.steps_in(out / "checkpoints") != before
        hits["saving" if saving else "training" if came else "starting"] += 1
        found = checkpoint.newest(out / "checkpoints")
        assert found is not None or count < 5, "every checkpoint is damaged"
    Run(processes, folder / "killed.log", **options).done()
    return hits


def wait(run, there):
    end = time.monotonic() + 240
    while not there():
        assert run.lives(), run.said()
        assert time.monotonic() < end, f"no progress\n{run.said()}"
        time.sleep(0.001)


def drafts(out, since):
    """Checkpoints that are being written, begun since then."""
    found = []
    for path in (out / "checkpoints").glob("step_*.tmp"):
        try:
            found += [path] * (path.stat().st_mtime >= since)
        except FileNotFoundError:  # it has become one
            continue
    return found


def compare(folder, kills, processes):
    """Weights after the kills are those of a run without: bit for bit. Returns where the kills hit."""
    hits = kill_until(folder, kills, processes)
    Run(processes, folder / "whole.log", out=folder / "whole", **OPTIONS).done()
    assert furthest(weights(folder / "killed"), weights(folder / "whole")) == 0
    return hits


@pytest.mark.soak
@pytest.mark.parametrize("processes", [2, 1])
def test_fifty_kills_change_nothing(tmp_path, processes):
    kills, begun = int(os.environ.get("EVA_FAST_KILLS", "50")), time.monotonic()
    hits = compare(tmp_path, kills, processes)
    print(
        f"{processes} processes, kills {dict(hits)}, {(time.monotonic() - begun) / 60:.1f} minutes"
    )
    assert hits["saving"] >= kills // 10 and hits["training"] >= kills // 10


@pytest.mark.slow
@pytest.mark.dist
def test_a_kill_changes_nothing(tmp_path, monkeypatch):
    """The same, short."""
    monkeypatch.setitem(OPTIONS, "steps", 24)
    monkeypatch.setitem(OPTIONS, "checkpoint_every", 3)
    compare(tmp_path, 2, 2)
