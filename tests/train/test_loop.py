"""The loop by itself, on a fake objective and loader: what it writes, how it ends, how it goes on."""

import json
import os
import signal

import pytest
import torch

from eva_fast.config import Config
from eva_fast.train import RunLength, checkpoint, checkpoint_writer, train
from eva_fast.train.callbacks import EachStep
from eva_fast.train.guard import NonFiniteError, SkippedError
from eva_fast.train.telemetry import Telemetry
from tests.train.fakes import FakeLoader, ask, make_step, snapshot


def run(out, step, total=10, **options):
    """Trains to the end; returns what `train` does."""
    flat = {"batch_size": 4, "log_every": 2, "lr": 1e-2, "device": "cpu", **options}
    calls = {name: flat.pop(name) for name in ("picture",) if name in flat}
    callbacks = [EachStep(flat.pop("on_step"))] if "on_step" in flat else []
    callbacks += flat.pop("callbacks", [])
    out.mkdir(exist_ok=True)
    length = RunLength(total=total, warmup=2, steps_per_epoch=5)
    with Telemetry(out, first_step=step.state.step, total=total, progress=False) as telemetry:
        going = train(
            step, length, Config.from_options(flat), out, telemetry, callbacks=callbacks, **calls
        )
        while True:
            try:
                next(going)
            except StopIteration as end:
                return end.value


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def steps(out):
    return [int(p.name.removeprefix("step_")) for p in checkpoint.steps_in(out / "checkpoints")]


def test_a_run_to_its_end(tmp_path):
    seen, drawn = [], []
    step = make_step()
    stopped = run(
        tmp_path, step, total=9, picture_every=4, picture=drawn.append, on_step=seen.append
    )
    assert stopped is None and step.state.step == 9 and seen == list(range(1, 10))
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 8, 9]
    assert [path.name for path in drawn] == ["step_000000004.png", "step_000000008.png"]
    assert steps(tmp_path) == [9]
    first, *_, last = lines(tmp_path)
    assert last["loss"] < first["loss"] and last["epoch"] == 1.8
    assert {
        "grad_norm",
        "largest",
        "lr",
        "images_per_second",
        "data_wait",
        "host_ms",
    } <= last.keys()


def test_rates_follow_the_schedule(tmp_path):
    run(tmp_path, make_step(), total=6, log_every=1, lr=0.5, min_lr=0.1, warmup_lr=0.0)
    rates = [line["lr"] for line in lines(tmp_path)]
    assert rates[0] == 0.0 and rates[1] == 0.5 and rates == [*rates[:2], *sorted(rates[2:])[::-1]]


def test_the_objective_is_told_of_each_pass_but_the_first(tmp_path):
    """Of 5 steps each, also where a run goes on at the end of one."""
    told = []
    for out, total in (("run", 12), ("again", 10)):
        step = make_step()
        step.objective.begin_epoch = lambda module, step=step: told.append(step.state.step)
        run(tmp_path / out, step, total=total)
    run(tmp_path / "again", step, total=12)
    assert told == [5, 10, 5, 10]


def test_checkpoints_come_when_they_are_due_and_the_newest_stay(tmp_path):
    run(tmp_path, make_step(), total=10, checkpoint_every=3, keep_checkpoints=2)
    assert steps(tmp_path) == [9, 10]


def test_a_run_that_goes_on_keeps_to_multiples(tmp_path):
    """As epochs end there: one that stopped between two of them is not off for ever."""
    options = dict(checkpoint_every=3, keep_checkpoints=9)
    run(tmp_path, make_step(), total=4, **options)
    step = make_step()
    step.state.restore(checkpoint.newest(tmp_path / "checkpoints"))
    run(tmp_path, step, total=10, **options)
    assert steps(tmp_path) == [3, 4, 6, 9, 10]


@pytest.mark.parametrize("at", [3, 4])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, at):
    whole, first, second = (make_step(loader=FakeLoader(), ema=0.9) for _ in range(3))
    run(tmp_path / "whole", whole)
    run(
        tmp_path / "parts",
        first,
        on_step=lambda n: n == at and os.kill(os.getpid(), signal.SIGTERM),
    )
    second.state.restore(checkpoint.newest(tmp_path / "parts" / "checkpoints"))
    run(tmp_path / "parts", second)
    for a, b in zip(snapshot(second.state), snapshot(whole.state), strict=True):
        assert torch.equal(a, b)
    timeless = ("step", "loss", "grad_norm", "largest", "lr")
    assert [[r[k] for k in timeless] for r in lines(tmp_path / "parts")] == [
        [r[k] for k in timeless] for r in lines(tmp_path / "whole")
    ]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_request_to_stop_ends_after_the_step_with_a_checkpoint(tmp_path, name):
    step = make_step()

    def ask_to_stop(number):
        if number == 5:
            os.kill(os.getpid(), getattr(signal, name))

    assert run(tmp_path, step, total=1000, on_step=ask_to_stop) == name
    assert step.state.step == 5 and steps(tmp_path) == [5]


def test_bad_data_leaves_a_checkpoint_of_the_steps_before(tmp_path):
    with pytest.raises(RuntimeError, match="could not be read"):
        run(tmp_path, make_step(loader=FakeLoader(bad=6)))
    assert steps(tmp_path) == [6]
    step = make_step()
    step.state.restore(checkpoint.newest(tmp_path / "checkpoints"))
    assert run(tmp_path, step) is None and steps(tmp_path)[-1] == 10


def test_numbers_that_stay_bad_leave_a_checkpoint_with_the_last_good_weights(tmp_path):
    calls = []

    def poisoned(part):
        calls.append(1)
        return ask(part) * (1 if len(calls) <= 3 else float("nan"))

    step = make_step(ask=poisoned)
    with pytest.raises(NonFiniteError, match="10 steps in a row"):
        run(tmp_path, step, total=100, log_every=1)
    assert steps(tmp_path) == [13]
    assert [line["loss"] is None for line in lines(tmp_path)] == [False] * 3 + [True] * 9
    other = make_step()
    other.state.restore(checkpoint.newest(tmp_path / "checkpoints"))
    assert other.state.module.moved.item() == 3 and other.state.guard.check() == 10


def test_numbers_that_stay_bad_take_the_run_back_to_its_checkpoint_with_fresh_data(tmp_path):
    calls = []

    def poisoned(part):
        calls.append(1)
        return ask(part) * (float("nan") if 7 <= len(calls) <= 16 else 1)

    step = make_step(ask=poisoned)
    options = dict(total=20, log_every=1, checkpoint_every=5, keep_checkpoints=9)
    assert run(tmp_path, step, **options) is None
    assert len(calls) == step.state.loader.number == 16 + 15  # back to 5, the data went on
    assert step.state.module.moved.item() == 20 and step.state.guard.check() == 0
    assert steps(tmp_path) == [5, 10, 15, 20]
    other = make_step()
    other.state.restore(tmp_path / "checkpoints/step_000000010")  # written anew
    assert other.state.guard.check() == 0


def test_a_checkpoint_that_finds_no_room_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    """The next one may; only the last must."""
    writes = checkpoint_writer.Writer._write_draft
    full = []

    def write(self, final, step, *rest):
        if step in full:
            raise OSError(28, "No space left on device")
        writes(self, final, step, *rest)

    monkeypatch.setattr(checkpoint_writer.Writer, "_write_draft", write)
    full.append(4)
    run(tmp_path / "one", make_step(), total=10, checkpoint_every=2, keep_checkpoints=9)
    assert steps(tmp_path / "one") == [2, 6, 8, 10] and "No space left" in caplog.text
    full.append(10)
    with pytest.raises(RuntimeError, match="step_000000010 cannot be written: .*No space left"):
        run(tmp_path / "two", make_step(), total=10, checkpoint_every=2, keep_checkpoints=9)
    assert steps(tmp_path / "two") == [2, 6, 8]


@pytest.mark.parametrize("total", [1, 8])
def test_a_run_that_took_no_step_is_no_success(tmp_path, total):
    """Fewer steps than the streak that stops a longer run."""
    step = make_step()
    step.ask = lambda batch: torch.tensor(float("nan"))
    with pytest.raises(SkippedError, match=f"in all {total} steps"):
        run(tmp_path, step, total=total)
    assert steps(tmp_path) == [total]


def test_one_step_taken_is_enough(tmp_path):
    step, answers = make_step(), iter([float("nan"), 0.0, float("nan"), float("nan")])
    step.ask = lambda batch: torch.tensor(next(answers))
    assert run(tmp_path, step, total=4) is None


def test_a_run_that_had_ended_ends_again(tmp_path):
    step = make_step()
    run(tmp_path, step, total=4)
    assert run(tmp_path, step, total=4) is None


@pytest.mark.parametrize("constant", [True, False])
def test_a_loss_that_never_moves_is_named(tmp_path, caplog, constant):
    step = make_step()
    if constant:  # as a teacher whose features are all zero makes it
        step.objective.loss = lambda module, *_: (
            module.linear.weight.sum() * 0.0 + 0.25,
            {"largest": torch.zeros(())},
        )
    run(tmp_path, step, total=6)
    assert ("exactly 0.25 in each of 6 steps" in caplog.text) == constant
