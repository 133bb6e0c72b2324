"""What a page says in words and numbers: key figures, what differs between runs, kernels, options."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from eva_fast.config import Config
from eva_fast.options import shown
from eva_fast.reporting.run import PROBES, Run

EVENTS = 12  # of a kind that are told one by one
UNSET = "–"
_OWN = {"out", "resume", "progress"}  # of the invocation, not of what is trained
_DEFAULTS: dict[str, Any] = Config().options()
WHY = {
    "alone": "nothing else runs it there",
    "forced": "forced by hand",
    "resumed": "as before an interruption",
}
ENVIRONMENT = {
    "eva_fast": "eva_fast", "git": "git commit", "python": "Python", "torch": "PyTorch",
    "numpy": "NumPy", "device": "device", "threads": "threads", "processes": "processes",
    "cpp_kernels": "C++ kernels", "parameters": "parameters",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A name, and a value for each run."""

    name: str
    values: tuple[str, ...]
    marked: bool = False
    """Whether it differs from its default."""

    @property
    def same(self) -> bool:
        return len(set(self.values)) == 1


@dataclass(frozen=True, slots=True)
class Kernel:
    """The choice of one op in one run."""

    name: str
    reason: str


def state(run: Run) -> str:
    """In a few words, where a run stands."""
    step, total = run.metrics.last("step"), run.total
    if step is None:
        return "nothing logged yet"
    if run.finished:
        return f"finished, {step:,.0f} steps"
    written = (run.folder / "metrics.jsonl").stat().st_mtime
    when = datetime.fromtimestamp(written, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    of = f" of {total:,}" if total else ""
    return f"at step {step:,.0f}{of}; last line {when}"


def progress(run: Run) -> float:
    """Share of a run that is done, in percent."""
    step = run.metrics.last("step") or 0
    return 100.0 if run.finished else min(100.0, 100 * step / run.total) if run.total else 0.0


def figures(run: Run) -> list[tuple[str, tuple[str, str]]]:
    """(what, (value, what is small beside it)): the numbers to look at first."""
    metrics = run.metrics
    seconds = metrics.seconds()
    numbers: list[tuple[str, float | None, Callable[[float], str]]] = [
        ("loss", metrics.last("loss"), "{:.4f}".format),
        ("constant prediction", metrics.last("baseline_loss"), "{:.4f}".format),
        ("gain", metrics.last("gain"), "{:+.4f}".format),
        ("images/s, median", metrics.median("images_per_second"), "{:,.1f}".format),
        ("waiting for data", metrics.median("data_wait"), lambda share: f"{100 * share:.1f} %"),
        ("training time", float(seconds[-1]) if len(seconds) else None, _duration),
        ("time left", metrics.last("seconds_left") or None, _duration),
        ("skipped steps", metrics.last("skipped_steps") or None, "{:,.0f}".format),
        ("unreadable images", metrics.last("bad_images") or None, "{:,.0f}".format),
    ]
    found = [(what, (form(value), "")) for what, value, form in numbers if value is not None]
    scores = []
    for probe, word in PROBES.items():
        lines = run.scores(probe)
        if lines:
            error = lines[-1].get(f"{probe}_error")
            beside = "%" if error is None else f"± {error:.1f} %"
            scores.append((word, (f"{lines[-1][probe]:.1f}", beside)))
    first = [what for what, _ in found].index("images/s, median") if scores and found else 0
    return found[:first] + scores + found[first:]


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if not 0 <= seconds < 1e12:
        return UNSET
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if hours >= 1:
        return f"{int(hours)} h {int(minutes) % 60} min"
    return f"{int(minutes)} min {int(seconds) % 60} s" if minutes >= 1 else f"{seconds:.1f} s"


def events(run: Run) -> list[str]:
    """What befell a run, in order of its kinds."""
    metrics = run.metrics
    skipped = metrics.skipped()
    step = metrics.columns.get("step")
    found = _some(
        [f"went on from step {at:,} after an interruption" for at in run.resumes()], "interruptions"
    )
    found += _some(
        [f"went back from step {at:,} after too many skipped steps" for at, _ in metrics.rewinds()],
        "times back",
    )
    if step is not None:
        found += _some(
            [f"{count:,} skipped by step {int(step[line]):,}" for line, count in skipped],
            "times skipped",
        )
    return found


def _some(told: list[str], kind: str) -> list[str]:
    rest = len(told) - EVENTS
    return told if rest <= 0 else [*told[:EVENTS], f"and {rest:,} more {kind}"]


def options(runs: Sequence[Run]) -> list[Row]:
    """Every option of the runs, in the order of their files."""
    names = dict.fromkeys(name for run in runs for name in run.options)
    return [
        Row(
            name,
            tuple(_text(run.options.get(name, UNSET)) for run in runs),
            any(name in run.options and run.options[name] != _default(name) for run in runs)
            and name not in _OWN,
        )
        for name in names
        if not (name in _OWN and len(runs) > 1)
    ]


def _default(name: str) -> Any:
    return _DEFAULTS.get(name, UNSET)


def environments(runs: Sequence[Run]) -> list[Row]:
    """Where the runs were made."""
    rows = [
        Row(word, tuple(_text(run.environment.get(name, UNSET)) for run in runs))
        for name, word in ENVIRONMENT.items()
    ]
    begun = tuple(_begun(run) for run in runs)
    rows.append(Row("begun", begun))
    return [row for row in rows if set(row.values) != {UNSET}]


def _begun(run: Run) -> str:
    try:
        when = datetime.fromisoformat(run.environment["starts"][0]["time"])
        return when.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return UNSET  # of an older version


def kernels(runs: Sequence[Run]) -> list[tuple[str, list[Kernel]]]:
    """(op, its choice in each run) of those that say so."""
    every = [_kernels_of(run) for run in runs]
    ops = dict.fromkeys(op for known in every for op in known)
    none = Kernel(UNSET, "")
    return [(op, [known.get(op, none) for known in every]) for op in ops]


def _kernels_of(run: Run) -> dict[str, Kernel]:
    entries = run.environment.get("kernels")
    found = {}
    for op, entry in entries.items() if isinstance(entries, dict) else ():
        if isinstance(entry, dict):
            found[str(op)] = Kernel(str(entry.get("implementation", UNSET)), _reason(entry))
    return found


def _reason(entry: dict[str, Any]) -> str:
    """Why an implementation runs: what it was measured against, or that nothing was."""
    times = entry.get("milliseconds")
    times = times if isinstance(times, dict) else {}
    known = {name: ms for name, ms in times.items() if type(ms) in (int, float)}
    told = [words for why, words in WHY.items() if entry.get("why") == why]
    if len(known) > 1:
        own = known.pop(str(entry.get("implementation")), None)
        others = ", ".join(
            f"{n} {ms:,.3g} ms" for n, ms in sorted(known.items(), key=lambda i: i[1])
        )
        told.append(others if own is None else f"{own:,.3g} ms, against {others}")
    return "; ".join(told)


def forced(run: Run) -> str | None:
    """Why a run has no choice of its own: all kernels are of one family, by its options."""
    mode = run.options.get("kernels")
    return str(mode) if isinstance(mode, str) and mode != "auto" else None


def alike(choices: Sequence[Kernel]) -> bool:
    """Whether all runs have the same one, for the same reason."""
    return len(set(choices)) == 1


def any_forced(runs: Sequence[Run]) -> bool:
    return any(forced(run) for run in runs)


def turned(runs: Sequence[Run]) -> bool:
    """Whether any went on after an interruption, or back to a checkpoint."""
    return any(run.resumes() or run.metrics.rewinds() for run in runs)


def skipping(runs: Sequence[Run]) -> bool:
    """Whether any has skipped a step."""
    return any(run.metrics.skipped() for run in runs)


def _text(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 1e18 else shown(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        text = ", ".join(map(_text, value[:6]))
        return text + (f", ... {len(value):,} in all" if len(value) > 6 else "")
    if isinstance(value, dict):
        return shown(value)
    text = str(value)
    return text if len(text) <= 300 else f"{text[:280]}... ({len(text):,} characters)"
