"""A loss far above the usual is skipped like one that is not finite: what counts as usual, that nothing
moves, and what comes after it."""

import numpy as np
import pytest
import torch

from eva_fast.ops import guard_step
from eva_fast.train import checkpoint, spikes
from eva_fast.train.guard import LossSpikeError
from eva_fast.train.spikes import Spikes
from tests.train.fakes import ask, make_step, snapshot
from tests.train.test_loop import lines, run, steps
from tests.train.test_step import equal
from tests.train.test_step import run as take

LIMIT = 5.0


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """A statistic of few steps, so that short runs have one."""
    monkeypatch.setattr(spikes, "STEPS", 4)


def spiking(at, size=1e3):
    """A target that makes the losses of these calls spikes."""
    calls = []

    def target(part):
        calls.append(1)
        return ask(part) + (size if len(calls) in at else 0)

    return target


def judge(spikes, loss):
    """Whether a step of that loss is applied."""
    return guard_step(loss, torch.ones(()), torch.ones(5), 0.0, 0, *spikes.judged)[0]


def test_the_statistic_is_a_weighted_mean_and_deviation():
    """Of the first 4 losses alike, of later ones by a quarter each; computed from explicit weights."""
    losses = np.random.default_rng(0).normal(3.0, 0.5, 12).astype(np.float32)
    found = Spikes(torch.device("cpu"), LIMIT)
    weights = np.zeros(0)
    for number, loss in enumerate(losses, 1):
        assert judge(found, torch.tensor(loss))
        share = 1 / min(number, 4)
        weights = np.append(weights * (1 - share), share)
        seen = losses[:number].astype(float)
        mean = np.average(seen, weights=weights)
        expected = [number, 0, mean, np.average(seen**2, weights=weights)]
        assert found.state[:4].tolist() == pytest.approx(expected, rel=1e-12)
    variance = np.average((seen - mean) ** 2, weights=weights) + (mean / 1000) ** 2
    limit = mean + LIMIT * variance**0.5
    for above in (-1e-6, 1e-6):
        other = Spikes(torch.device("cpu"), LIMIT)
        other.state.copy_(found.state)
        loss = torch.tensor(limit + above, dtype=torch.float64)
        assert judge(other, loss) == (above < 0)
    assert other.told() == (1, *map(pytest.approx, (limit, mean, LIMIT), (1e-5, None, 1e-5)))


@pytest.mark.parametrize(
    "losses, expected",
    [
        ([1.0, 1.1, 0.9, 9.0, 1.0], [False] * 5),  # too few before it
        ([1.0, 1.1, 0.9, 1.0, 9.0, 1.0, 9.0], [False] * 4 + [True, False, True]),
        ([1.0, 1.1, 0.9, 1.0, -9.0], [False] * 5),  # better is no fault
        ([2.0] * 5 + [2.005, 2.1], [False] * 6 + [True]),  # a loss that stands still
        ([1.0, 1.1, 0.9, 1.0, np.nan, np.inf], [False] * 4 + [True] * 2),  # for another reason
    ],
)
def test_what_is_a_spike(losses, expected):
    found = Spikes(torch.device("cpu"), LIMIT)
    assert [not judge(found, torch.tensor(loss)) for loss in losses] == expected
    assert (
        found.told()[0] == sum(np.isfinite(losses) & expected) and found.state.isfinite()[:4].all()
    )


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"scaled": True}], ids=str)
def test_a_spike_moves_nothing(options):
    parts = options.get("accumulate", 1)
    step = make_step(spike=LIMIT, ema=0.9, ask=spiking([5 * parts + 1]), **options)
    take(step, range(5))
    state = step.state
    before, sums = snapshot(state), state.sums.tensor.clone()
    usual, scale = state.guard.spikes.state[[0, 2, 3]], state.guard.state[3].item()
    ((loss, norm, applied),) = take(step, [5])
    assert loss.isfinite() and norm.isfinite() and not applied and not step.objective.flags[-1]
    assert equal(snapshot(state), before) and torch.equal(state.sums.tensor, sums)
    assert torch.equal(state.guard.spikes.state[[0, 2, 3]], usual)
    assert state.guard.state[3].item() == scale and state.guard.check() == 1
    ((_, _, applied),) = take(step, [6])
    assert applied and not equal(snapshot(state), before)


def test_a_quiet_run_has_the_bits_of_one_without_the_guard():
    with_guard, without = make_step(spike=LIMIT, ema=0.9), make_step(ema=0.9)
    for a, b in zip(take(with_guard, range(12)), take(without, range(12)), strict=True):
        assert equal(a, b)
    assert equal(snapshot(with_guard.state), snapshot(without.state))


def test_what_was_skipped_is_told(tmp_path, caplog):
    run(tmp_path, make_step(spike=LIMIT, ask=spiking([6, 8])), total=10, log_every=5)
    (said,) = (r.getMessage() for r in caplog.records if r.name == "eva_fast.train.guard")
    assert said == (
        "skipped 2 steps: the loss is a spike, at the last of them 1.002e+06, where the mean of recent "
        "steps is 2.333: 1.3e+06 deviations (spike=5)"
    )
    assert lines(tmp_path)[-1]["skipped_steps"] == 2


def test_many_in_a_row_take_the_run_back_and_then_stop_it(tmp_path, caplog):
    """The first ten after the checkpoint of step 5, and all from the second try's third step on."""
    step = make_step(spike=LIMIT, ask=spiking([*range(8, 18), *range(20, 99)]))
    options = dict(log_every=1, checkpoint_every=5, keep_checkpoints=9, rewinds=1)
    with pytest.raises(LossSpikeError, match="10 steps in a row, 5 deviations .* spike=0"):
        run(tmp_path, step, total=90, **options)
    assert "Going back from step 17 to" in caplog.text and "(0 more times)" in caplog.text
    assert step.state.loader.number == 17 + 12  # the data went on
    assert step.state.module.moved.item() == 7 and steps(tmp_path)[-1] == 17
    other = make_step(spike=LIMIT)
    other.state.restore(checkpoint.newest(tmp_path / "checkpoints"))
    assert other.state.module.moved.item() == 7
    assert torch.equal(other.state.guard.spikes.state, step.state.guard.spikes.state)


@pytest.mark.parametrize("before, now", [(0.0, LIMIT), (LIMIT, 0.0)])
def test_a_run_may_take_it_up_or_leave_it(tmp_path, before, now):
    run(tmp_path, make_step(spike=before), total=6)
    step = make_step(spike=now)
    step.state.restore(checkpoint.newest(tmp_path / "checkpoints"))
    assert run(tmp_path, step, total=8) is None
    if now:
        assert step.state.guard.spikes.state[0] == 2
