"""Runs stages one after the other within a budget, whatever becomes of each.

This process uses neither torch nor the GPU, so that nothing a stage does to them reaches it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.session.notes import FILE, Notes

ROOT = Path(__file__).parents[2]
FULL_BUDGET = 600.0
"""Seconds that the stages' own limits are made for."""
RESERVE = 6.0
"""Seconds of the budget that are kept for the last report and its plots."""
GRACE = 2.0
"""Seconds between asking a stage to end and killing it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One process. `command` gets the seconds it may take and the folder of the results."""

    name: str
    seconds: float
    """Its limit where the budget is `FULL_BUDGET`; others give more or less, in proportion."""
    least: float
    """With less time left it is not begun."""
    command: Callable[[float, Path], Sequence[str]]
    whole: bool = False
    """A smaller budget does not shorten it."""

    def limit(self, budget: float) -> float:
        """Seconds of a budget."""
        share = self.seconds * budget / FULL_BUDGET
        return max(share, self.seconds if self.whole else self.least)


def run(
    stages: Sequence[Stage],
    out: Path,
    budget: float,
    report: Callable[[Path], object] = lambda out: None,
    say: Callable[[str], None] = print,
) -> list[dict]:
    """Runs the stages; returns one {"name", "outcome", "seconds", "status"} each, as it is noted too.

    outcome: "done", "failed" (its exit status is not 0), "killed" (by a signal that was not ours),
    "out of time" or "not begun". report: called with `out` after every stage; its failure is a word
    in the log. Interrupted, it ends the stage that runs, reports and lets the interrupt through.
    """
    begun = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    (out / "logs").mkdir(exist_ok=True)
    (out / FILE).unlink(missing_ok=True)
    notes, outcomes = Notes(out, "session"), []
    notes.add("session", budget=budget, stages=[s.name for s in stages])
    with _ended_by_signals():
        for stage in stages:
            left = budget - RESERVE - GRACE - (time.monotonic() - begun)
            if left < stage.least:
                outcome = {"name": stage.name, "outcome": "not begun", "seconds": 0.0}
            else:
                try:
                    outcome = _run(stage, min(stage.limit(budget), left), out)
                except KeyboardInterrupt:
                    _try(report, out, say)
                    raise
            outcomes.append(outcome)
            notes.add("outcome", **outcome)
            passed = time.monotonic() - begun
            say(
                f"[{passed:5.0f} s] {stage.name}: {outcome['outcome']} ({outcome['seconds']:.1f} s)"
            )
            _try(report, out, say)
    return outcomes


def _try(report: Callable[[Path], object], out: Path, say: Callable[[str], None]) -> None:
    try:
        report(out)
    except Exception as error:  # a table that cannot be made must not cost the next stage
        say(f"no report: {type(error).__name__}: {error}")


def _run(stage: Stage, limit: float, out: Path) -> dict:
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    status: int | None = None
    with (out / "logs" / f"{stage.name}.txt").open("wb") as log:
        child = subprocess.Popen(
            [*map(str, stage.command(limit, out))],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = child.wait(limit)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end(child)
    outcome = "out of time" if status is None else "failed" if status > 0 else "done"
    if status is not None and status < 0:
        outcome = "killed"
    seconds = round(time.monotonic() - begun, 2)
    return {"name": stage.name, "outcome": outcome, "seconds": seconds, "status": status}


def _end(child: subprocess.Popen) -> None:
    """Ends the child and what it started."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE if kind == signal.SIGTERM else None)
        # once the first process is gone, the others of its group have nobody to wait for
    child.wait()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM, as of a time limit around the whole command, is heard as an interrupt is."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def module(name: str) -> Callable[[float, Path], Sequence[str]]:
    """The command of a stage that lies in `bench.session.stages`."""

    def command(seconds: float, out: Path) -> Sequence[str]:
        words = [sys.executable, "-m", "bench.session.child", name]
        return [*words, f"{seconds:.1f}", str(out)]

    return command
