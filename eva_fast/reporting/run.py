"""What a run's folder says of the run."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eva_fast.documents import read_object, read_yaml
from eva_fast.errors import MissingFileError, UsageError
from eva_fast.files import RUN_CONFIG, RUN_ENVIRONMENT, is_run
from eva_fast.options import user_path
from eva_fast.reporting.metrics import Metrics, read_lines, read_metrics
from eva_fast.train.config import BUILTIN_EPOCHS, EVA_EPOCHS

PROBES = {"knn": "k-NN", "linear": "linear probe"}
NEAR = 4  # runs that a message names
MOST_EPOCHS = 1e12  # more are nobody's


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run that has begun: finished, stopped, or under way."""

    folder: Path
    name: str
    options: dict[str, Any]
    environment: dict[str, Any]
    metrics: Metrics
    probes: list[dict[str, float]]

    @property
    def batch_size(self) -> float:
        size = self.options.get("batch_size")
        return size if type(size) is int and size > 0 else float("nan")

    @property
    def total(self) -> int | None:
        """How many steps it is to have; None where nothing says so yet."""
        if self.metrics.last("seconds_left") == 0:
            return int(self.metrics.columns["step"][-1])
        steps, epochs = self.options.get("steps"), self.options.get("epochs")
        if type(steps) is int and steps > 0:
            return steps
        step, epoch = self.metrics.last("step"), self.metrics.last("epoch")
        if not step or not epoch:
            return None
        if not isinstance(epochs, int | float) or not 0 < epochs < MOST_EPOCHS:
            epochs = BUILTIN_EPOCHS if self.options.get("data") == "builtin" else EVA_EPOCHS
        return max(1, round(epochs * step / epoch))

    @property
    def finished(self) -> bool:
        return self.metrics.last("seconds_left") == 0

    def scores(self, probe: str) -> list[dict[str, float]]:
        """The lines of its probes that have a score of this one."""
        return [line for line in self.probes if math.isfinite(line.get(probe, math.nan))]

    def resumes(self) -> list[int]:
        """Steps from which it went on after an interruption."""
        starts = self.environment.get("starts")
        if isinstance(starts, list) and len(starts) > 1:
            steps = [start.get("step") for start in starts[1:] if isinstance(start, dict)]
            return [step for step in steps if type(step) is int and step >= 0]
        return self.metrics.restarts()


def read_runs(folders: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """The runs in these folders, each once, with names that tell them apart. UsageError where one is no
    run's."""
    paths = list(dict.fromkeys(user_path(folder).resolve() for folder in folders))
    return [_read(path, name) for path, name in zip(paths, _names(paths))]


def _read(folder: Path, name: str) -> Run:
    _check(folder)
    options = read_yaml(folder / RUN_CONFIG)
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise UsageError(f"{folder / RUN_CONFIG} must hold lines of `option: value`")
    return Run(
        folder=folder,
        name=name,
        options=options,
        environment=read_object(folder / RUN_ENVIRONMENT),
        metrics=read_metrics(folder / "metrics.jsonl"),
        probes=read_lines(folder / "probes.jsonl"),
    )


def _check(folder: Path) -> None:
    if is_run(folder):
        return
    try:
        there, inside = folder.exists(), _inside(folder)
    except OSError as error:
        raise UsageError(f"cannot look into {folder}: {error.strerror}") from None
    if not there:
        raise MissingFileError(
            f"there is no folder {folder}: give that of a run, which pretrain names as out"
        )
    hint = "give the folder that pretrain names as out"
    if inside:
        hint = f"there are runs in it: {', '.join(inside[:NEAR])}{', ...' * (len(inside) > NEAR)}"
    raise UsageError(
        f"{folder} is not a run's folder: it holds no {RUN_CONFIG} and {RUN_ENVIRONMENT}; {hint}"
    )


def _inside(folder: Path) -> list[str]:
    """The runs in a folder."""
    return sorted(p.name for p in folder.iterdir() if is_run(p)) if folder.is_dir() else []


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell all apart."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


__all__ = ["Run", "read_runs"]
