"""A run's metrics.jsonl as columns, and what happened to the run as that file shows it.

The file is read line by line, and may be of a run that is being written, killed, or anybody's.
"""

import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eva_fast.errors import UsageError
from eva_fast.files import reading

MOST_BYTES = 1 << 20
"""Of a line; a longer one is none of ours."""
MOST_COLUMNS = 100


@dataclass(kw_only=True, slots=True)
class Metrics:
    """What a run has logged. Columns are float64 [lines], NaN where a line has no such number."""

    columns: dict[str, np.ndarray] = field(default_factory=dict)
    unreadable: int = 0
    """Lines in the middle that are none of a run's."""
    half_written: bool = False
    """Whether the last line was: the run is writing it, or was killed there."""

    def __len__(self) -> int:
        return len(self.columns["step"]) if self.columns else 0

    def has(self, name: str) -> bool:
        """Whether any line has a number of that name."""
        return name in self.columns and bool(np.isfinite(self.columns[name]).any())

    def last(self, name: str) -> float | None:
        """Of the last line; None where that has none."""
        value = self.columns[name][-1] if len(self) and name in self.columns else math.nan
        return float(value) if math.isfinite(value) else None

    def median(self, name: str) -> float | None:
        return float(np.nanmedian(self.columns[name])) if self.has(name) else None

    def seconds(self) -> np.ndarray:
        """Seconds of training at each line over all parts of the run: the clock of metrics.jsonl begins
        anew with each part."""
        if "seconds" not in self.columns:
            return np.full(len(self), np.nan)
        clock = np.nan_to_num(self.columns["seconds"])
        passed = np.diff(clock, prepend=0.0)
        return np.cumsum(np.where(passed >= 0, passed, clock))

    def restarts(self) -> list[int]:
        """Steps before which the run's clock began anew."""
        if "seconds" not in self.columns:
            return []
        return self.columns["step"][:-1][np.diff(self.columns["seconds"]) < 0].astype(int).tolist()

    def rewinds(self) -> list[tuple[int, int]]:
        """(step, next step) where the run went back."""
        step = self.columns.get("step", np.empty(0)).astype(int)
        return [(int(step[i]), int(step[i + 1])) for i in np.flatnonzero(np.diff(step) <= 0)]

    def skipped(self) -> list[tuple[int, int]]:
        """(line, number of steps skipped since the line before)."""
        if "skipped_steps" not in self.columns:
            return []
        more = np.diff(np.nan_to_num(self.columns["skipped_steps"]), prepend=0.0)
        return [(int(line), int(more[line])) for line in np.flatnonzero(more > 0)]


def read_metrics(path: Path) -> Metrics:
    """The metrics of a run; none of a run that has logged nothing. UsageError where the file cannot be
    read."""
    found, columns, count = Metrics(), dict[str, array](), 0
    try:
        for line, whole in _lines(path):
            values = _values(line)
            if values is None:
                if whole:
                    found.unreadable += 1
                else:
                    found.half_written = True
                continue
            for name, value in values.items():
                if name not in columns:
                    if len(columns) == MOST_COLUMNS:
                        continue
                    columns[name] = array("d", [math.nan]) * count
                columns[name].append(value)
            count += 1
            for column in columns.values():
                if len(column) < count:
                    column.append(math.nan)
    except FileNotFoundError:
        return found
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    found.columns = {name: np.frombuffer(column) for name, column in columns.items()}
    return found


def read_lines(path: Path) -> list[dict[str, float]]:
    """The lines of a short file of the same kind, such as probes.jsonl; [] where there is none."""
    try:
        values = [_values(line) for line, _ in _lines(path)]
    except OSError:
        return []
    return [line for line in values if line is not None]


def _lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """(line, whether it is a whole one). Of one that is too long nothing."""
    with reading(path) as file:
        while line := file.readline(MOST_BYTES):
            whole = line.endswith(b"\n")
            if not whole and len(line) == MOST_BYTES:
                while (rest := file.readline(MOST_BYTES)) and not rest.endswith(b"\n"):
                    pass
                line, whole = b"", bool(rest)
            yield line, whole


def _values(line: bytes) -> dict[str, float] | None:
    """The numbers of a line of a run, the largest of a list; None where it is none."""
    try:
        values = json.loads(line)
        step = values["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if type(step) is not int or not 0 <= step < 2**53:
        return None
    numbers = ((name, _number(value)) for name, value in values.items())
    return {name: number for name, number in numbers if number is not None}


def _number(value: Any) -> float | None:
    if isinstance(value, list):
        return max(map(_plain, value), default=None) if all(map(_is_number, value)) else None
    return _plain(value) if _is_number(value) else None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _plain(value: float) -> float:
    """NaN for what no chart can show."""
    return float(value) if abs(value) < 1e30 else math.nan


__all__ = ["Metrics", "read_lines", "read_metrics"]
