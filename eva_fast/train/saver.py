"""When a run writes its checkpoints, and when it goes back to one."""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from eva_fast import world
from eva_fast.errors import RunError
from eva_fast.train import checkpoint
from eva_fast.train.checkpoint_writer import Writer
from eva_fast.train.guard import SkippedError
from eva_fast.train.state import TrainState

if TYPE_CHECKING:
    from eva_fast.config import Config

log = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of a run beside it, into `folder`. Use it in a `with` block."""

    def __init__(self, state: TrainState, config: "Config", folder: Path):
        self.state, self.run, self.folder = state, config.run, folder
        self.options = config.options()
        self.step, self.time = state.step, time.monotonic()
        self.rewinds = config.run.rewinds
        self.writer = Writer(folder, self.run.keep_checkpoints, self.run.keep_checkpoint_every)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *error: object) -> None:
        self.writer.__exit__(*error)

    def due(self) -> bool:
        """At multiples of `checkpoint_every`: all processes of a run find the same, and so does one that
        goes on."""
        every = self.run.checkpoint_every
        return every is not None and self.state.step > self.step and self.state.step % every == 0

    def time_is_up(self) -> bool:
        """By this process's clock."""
        minutes = self.run.checkpoint_minutes
        return bool(minutes) and (time.monotonic() - self.time) / 60 >= minutes

    def save(self) -> None:
        """Begins a checkpoint, unless the last one is of this step. One that cannot be written is told
        of, and the run goes on: older ones are whole, and the next may find room."""
        if self.state.step > self.step:
            try:
                self.state.save(self.writer, self.options)
            except RunError as error:  # of the one before
                log.error("%s; the run goes on, and tries again", error)
                self.state.save(self.writer, self.options)
        self.step, self.time = self.state.step, time.monotonic()

    def finish(self, *, unbegun: bool = False) -> None:
        """The last checkpoint, on disk when this returns; RunError where it cannot be written. unbegun:
        also of a run that was stopped before its first step, which goes on from there."""
        if unbegun and self.state.step == 0:
            self.step = -1
        self.save()
        self.writer.wait()

    @contextmanager
    def on_error(self) -> Iterator[None]:
        """Between two steps the state is whole: a stop for bad data loses nothing. Of several processes
        one alone cannot save; the last checkpoint is whole."""
        try:
            yield
        except SkippedError:
            raise
        except Exception:
            if world.world().size == 1:
                self.finish()
            raise

    def rewind(self, error: SkippedError) -> None:
        """Goes back to the newest checkpoint from before the steps that were skipped; later ones go,
        the data goes on where it is. Raises `error` where there is none or it was done too often, with
        a checkpoint of the last good weights."""
        self.writer.wait()
        found = world.from_first(self._before(error.streak)) if self.rewinds else None
        if found is None:
            self.finish()
            raise error
        self.rewinds -= 1
        if world.world().first:
            for later in checkpoint.steps_in(self.folder):
                if later.name > found.name:
                    shutil.rmtree(later)
        here = self.state.step
        self.state.restore(found, with_data=False)
        self.step, self.time = self.state.step, time.monotonic()
        log.warning(
            "%s. Going back from step %d to %s, and on with fresh data (%d more times)",
            error, here, found, self.rewinds,
        )  # fmt: skip

    def _before(self, streak: int) -> Path | None:
        """The newest whole checkpoint from before the last `streak` steps; asked of process 0 alone."""
        if not world.world().first:
            return None
        begin = self.folder / checkpoint.name_of(self.state.step - streak)
        whole = (
            p
            for p in reversed(checkpoint.steps_in(self.folder))
            if p.name <= begin.name and checkpoint.fault_of(p) is None
        )
        return next(whole, None)
