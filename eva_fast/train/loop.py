"""The training loop. Nothing in a step waits for the device; log points do."""

import logging
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from eva_fast.train.callbacks import Callback, Training
from eva_fast.train.captured import CapturedStep
from eva_fast.train.clock import Clock
from eva_fast.train.guard import SkippedError
from eva_fast.train.processes import Agreement
from eva_fast.train.saver import Saver
from eva_fast.train.schedule import RunLength
from eva_fast.train.state import TrainState
from eva_fast.train.step import TrainStep
from eva_fast.train.stop import StopRequest
from eva_fast.train.telemetry import Silent, Telemetry

if TYPE_CHECKING:
    from eva_fast.config import Config

log = logging.getLogger(__name__)


def train(
    step: TrainStep | CapturedStep,
    length: RunLength,
    config: "Config",
    out: Path,
    telemetry: Telemetry | Silent,
    *,
    picture: Callable[[Path], object] | None = None,
    callbacks: Sequence[Callback] = (),
    student: Callable[[], nn.Module] | None = None,
) -> Generator[int, None, str | None]:
    """Trains from `step.state.step` to the end of `length`, and yields the number of finished steps
    after each.

    Args:
        step: what is done with each batch of its state's loader.
        out: the run's folder; checkpoints and pictures go into folders of it.
        picture: makes the picture of a step; called with its path.
        callbacks: told what happens.
        student: what `Training.student` gives; the module where it is not said.

    Returns None, or what asked it to stop, `StopRequest.reason`, which may have come after the last
    step; either way the last step is in a checkpoint. An Exception of the data, a callback or the
    caller, and SkippedError (also where every step was skipped) leave a checkpoint too. A loss that is
    the same in every step is warned of.
    """
    state, run = step.state, config.run
    state.module.train()
    first_step = state.step
    batches = iter(state.loader)
    clock = Clock(state, config.optim.batch_size, length)
    agreed = Agreement()
    with StopRequest() as stop, Saver(state, config, out / "checkpoints") as saver:
        training = Training(
            state, config, out, length.total, stop, student or (lambda: state.module)
        )

        def tell(what: str, *values: object) -> None:
            with saver.on_error():
                for callback in callbacks:
                    getattr(callback, what)(training, *values)

        tell("on_start")
        while state.step < length.total:
            asked, timed = agreed(stop.number, saver.time_is_up())
            if asked:
                stop.take(asked)
                break
            if timed or saver.due():
                saver.save()
            rate = length.rate(state.step, config.optim)
            with saver.on_error():
                batch = next(batches)
            with clock.host():
                if state.step and state.step % length.steps_per_epoch == 0:
                    with torch.no_grad():
                        step.objective.begin_epoch(state.module)
                step(batch, rate)

            telemetry.advance(state.step)
            tell("on_step")
            if state.step % run.log_every == 0 or state.step == length.total:
                try:
                    with saver.on_error():
                        training.metrics = clock.read(rate, agreed.waited)
                        telemetry.record(**training.metrics)
                    tell("on_log", training.metrics)
                except SkippedError as error:
                    saver.rewind(error)
                    clock.restart()
            if picture and run.picture_every and state.step % run.picture_every == 0:
                picture(out / "pictures" / f"step_{state.step:09d}.png")
            for folder in saver.writer.written():
                tell("on_checkpoint", folder)
            with saver.on_error():
                yield state.step
        agreed.settle()
        saver.finish(unbegun=True)
        for folder in saver.writer.written():
            tell("on_checkpoint", folder)
        _check_outcome(state, state.step - first_step)
        tell("on_end", stop.reason if state.step < length.total else None)
    return stop.reason


def _check_outcome(state: TrainState, steps: int) -> None:
    """A run that took no step is no success, and one whose loss never moved is hardly one."""
    found = state.sums.loss_range()
    if steps and found is None:
        raise SkippedError(
            f"the loss or its gradient was not finite, or the loss a spike, in all {steps} steps: each "
            "was skipped, and the weights are those from before them. Look at the teacher's weights and "
            "the data for values that are not finite; otherwise lower the learning rate (lr)"
        )
    if steps > 1 and found is not None and found[0] == found[1]:
        log.warning(
            "the loss was exactly %.6g in each of %d steps: nothing was learned. The teacher's "
            "features may be the same for every image, or zero; look at the picture",
            found[0], steps,
        )  # fmt: skip


__all__ = ["train"]
