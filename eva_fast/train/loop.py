"""The training loop. Nothing in a step waits for the device; log points do."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eva_fast.train.baseline import LOSS, with_gain
from eva_fast.train.captured import CapturedStep
from eva_fast.train.guard import NonFiniteError
from eva_fast.train.schedule import RunLength
from eva_fast.train.state import TrainState
from eva_fast.train.step import TrainStep
from eva_fast.train.stop import StopRequest
from eva_fast.train.telemetry import Telemetry

if TYPE_CHECKING:
    from eva_fast.config import Config

log = logging.getLogger(__name__)


def train(
    step: TrainStep | CapturedStep,
    length: RunLength,
    config: "Config",
    out: Path,
    telemetry: Telemetry,
    *,
    picture: Callable[[Path], object] | None = None,
    on_step: Callable[[int], object] | None = None,
) -> str | None:
    """Trains from `step.state.step` to the end of `length`.

    Args:
        step: what is done with each batch of its state's loader.
        out: the run's folder; checkpoints and pictures go into folders of it.
        picture: makes the picture of a step; called with its path.
        on_step: called with the number of finished steps after each.

    Returns None, or the name of the signal that stopped it early; either way the last step is in a
    checkpoint. RuntimeError from the data and NonFiniteError (also where every step was skipped) leave
    a checkpoint too. A loss that is the same in every step is warned of.
    """
    state, run = step.state, config.run
    state.module.train()
    first_step = state.step
    batches = iter(state.loader)
    saver = _Saver(state, config, out / "checkpoints")
    clock = _Clock(state, config.optim.batch_size, length)
    with StopRequest() as stop:
        while state.step < length.total and stop.signal_name is None:
            rate = length.rate(state.step, config.optim)
            with saver.on_error():
                batch = next(batches)
            with clock.host():
                step(batch, rate)

            telemetry.advance(state.step)
            if on_step is not None:
                on_step(state.step)
            if state.step % run.log_every == 0 or state.step == length.total:
                with saver.on_error():
                    telemetry.record(**clock.read(rate))
            if picture and run.picture_every and state.step % run.picture_every == 0:
                picture(out / "pictures" / f"step_{state.step:09d}.png")
            if saver.due():
                saver.save()
        saver.save()
        _check_outcome(state, state.step - first_step)
    return stop.signal_name


def _check_outcome(state: TrainState, steps: int) -> None:
    """A run that took no step is no success, and one whose loss never moved is hardly one."""
    found = state.sums.loss_range()
    if steps and found is None:
        raise NonFiniteError(
            f"the loss or its gradient was not finite in all {steps} steps: each was skipped, and the "
            "weights are those from before them. Look at the teacher's weights and the data for "
            "values that are not finite; otherwise lower the learning rate (lr)"
        )
    if steps > 1 and found is not None and found[0] == found[1]:
        log.warning(
            "the loss was exactly %.6g in each of %d steps: nothing was learned. The teacher's "
            "features may be the same for every image, or zero; look at the picture",
            found[0], steps,
        )  # fmt: skip


class _Saver:
    """Writes the checkpoints of a run when they are due."""

    def __init__(self, state: TrainState, config: "Config", folder: Path):
        self.state, self.run, self.folder = state, config.run, folder
        self.options = config.options()
        self.step, self.time = state.step, time.monotonic()

    def due(self) -> bool:
        steps, minutes = self.state.step - self.step, (time.monotonic() - self.time) / 60
        return _due(steps, self.run.checkpoint_every) or _due(minutes, self.run.checkpoint_minutes)

    def save(self) -> None:
        if self.state.step > self.step:
            self.state.save(self.folder, self.run.keep_checkpoints, self.options)
        self.step, self.time = self.state.step, time.monotonic()

    @contextmanager
    def on_error(self) -> Iterator[None]:
        """Between two steps the state is whole: a stop for bad data or numbers loses nothing."""
        try:
            yield
        except (RuntimeError, ValueError):
            self.save()
            raise


def _due(passed: float, every: float | None) -> bool:
    return bool(every) and passed >= every  # type: ignore[operator]


class _Clock:
    """Turns the sums since the last log point into the line of metrics.jsonl."""

    def __init__(self, state: TrainState, batch_size: int, length: RunLength):
        self.state, self.batch_size, self.length = state, batch_size, length
        self.start = self.mark = time.monotonic()
        self.first_step = self.step = state.step
        self.waited = state.loader.wait_seconds
        self.making = 0.0

    @contextmanager
    def host(self) -> Iterator[None]:
        """Around what makes a step: nothing in it waits for the device, but where that is behind by
        many launches the next one does."""
        start = time.perf_counter()
        yield
        self.making += time.perf_counter() - start

    def read(self, rate: float) -> dict[str, Any]:
        """Reads the device. NonFiniteError if too many steps were skipped in a row."""
        state, length = self.state, self.length
        means = with_gain(state.sums.take())
        skipped = state.guard.check()
        now, waited = time.monotonic(), state.loader.wait_seconds
        seconds, steps = max(now - self.mark, 1e-9), state.step - self.step
        per_step = (now - self.start) / (state.step - self.first_step)
        record = {
            "step": state.step,
            "epoch": round(state.step / length.steps_per_epoch, 4),
            **{name: means.pop(name) for name in ("loss", LOSS, "gain") if name in means},
            "lr": rate,
            "grad_norm": means.pop("grad_norm"),
            **means,
            "images_per_second": round(steps * self.batch_size / seconds, 2),
            "data_wait": round((waited - self.waited) / seconds, 4),
            "host_ms": round(1e3 * self.making / max(steps, 1), 3),
            "seconds": round(now - self.start, 2),
            "seconds_left": round(per_step * (length.total - state.step), 1),
            "skipped_steps": skipped,
            "bad_images": state.loader.bad_count,
        }
        self.mark, self.step, self.waited, self.making = now, state.step, waited, 0.0
        return record


__all__ = ["NonFiniteError", "train"]
