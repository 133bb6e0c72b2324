"""What a run says while it trains: metrics.jsonl, a progress bar, and the loggers that it asks for."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from eva_fast.files import atomic_write
from eva_fast.train import loggers
from eva_fast.train.loggers import Logger
from eva_fast.world import world

if TYPE_CHECKING:
    from eva_fast.config import Config

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 10.0


class Telemetry:
    """Writes one JSON object a log point to `metrics.jsonl` and shows it.

    On a terminal that is a progress bar; elsewhere a log line at most every ten seconds.
    """

    def __init__(
        self, out: Path, *, first_step: int, total: int, progress: bool,
        tracked: Sequence[Logger] = (),
    ):  # fmt: skip
        self.path = out / "metrics.jsonl"
        keep_until(self.path, first_step)
        self._file = self.path.open("ab", buffering=0)
        self._unwritten = b""
        self._loggers = list(tracked)
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (progress and self._console.is_terminal),
        )
        self._task = self._bar.add_task("step", total=total, completed=first_step, shown="")
        self._total = total
        self._last_line = 0.0
        self._bar.start()

    def advance(self, step: int) -> None:
        """Moves the bar; touches no tensor."""
        self._bar.update(self._task, completed=step)

    def record(self, **values: Any) -> None:
        """One log point. `values` are plain numbers; `step` and `loss` must be among them."""
        self._write(json.dumps(values).encode() + b"\n")
        loss = "(steps skipped)" if values["loss"] is None else f"{values['loss']:.4f}"
        if values.get("gain") is not None:
            loss += f" (constant {values['baseline_loss']:.4f}, gain {values['gain']:.4f})"
        shown = (
            f"loss {loss}  {values['images_per_second']:.1f} images/s  "
            f"waiting {100 * values['data_wait']:.0f} %"
        )
        self._bar.update(self._task, shown=shown)
        now = time.monotonic()
        due = now - self._last_line > SECONDS_BETWEEN_LINES or values["step"] == self._total
        if self._bar.disable and due:
            self._last_line = now
            log.info(
                "step %d/%d  %s  %.0f s left",
                values["step"], self._total, shown, values["seconds_left"],
            )  # fmt: skip
        numbers = {n: v for n, v in values.items() if n != "step" and isinstance(v, int | float)}
        for logger in self._loggers[:]:
            if not loggers.add(logger, values["step"], numbers):
                self._loggers.remove(logger)
                loggers.close(logger)

    def _write(self, line: bytes) -> None:
        """A line that a full disk refuses waits for the next one: no run ends for that."""
        waiting, self._unwritten = bool(self._unwritten), self._unwritten + line
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            if not waiting:
                log.error("%s cannot be written (%s); its lines wait for room", self.path, error)

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._bar.stop()
        self._write(b"")
        self._file.close()
        for logger in self._loggers:
            loggers.close(logger)


class Silent:
    """The telemetry of all processes of a run but the first."""

    def advance(self, step: int) -> None:
        pass

    def record(self, **values: Any) -> None:
        pass


@contextmanager
def open_telemetry(
    out: Path, config: "Config", first_step: int, total: int
) -> Iterator[Telemetry | Silent]:
    """What this process says of the run."""
    if not world().first:
        yield Silent()
        return
    run = config.run
    with Telemetry(
        out, first_step=first_step, total=total, progress=run.progress,
        tracked=loggers.open_loggers(run.track, out, config.options()),
    ) as telemetry:  # fmt: skip
        yield telemetry


def keep_until(path: Path, step: int) -> None:
    """Drops lines of `path` after `step`: a resumed run writes them again, the same."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, TypeError, KeyError, RecursionError):
            break  # the line at which the process was killed
        kept.append(line + "\n")
    with atomic_write(path) as draft:
        draft.write_text("".join(kept))
