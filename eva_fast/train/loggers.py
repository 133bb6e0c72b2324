"""Where a run's metrics go beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow.

Each library is imported only where it is asked for, and finds its server and its offline mode in its
own environment variables (WANDB_MODE=offline, MLFLOW_TRACKING_URI). A run that goes on goes on in its
record.
"""

import contextlib
import importlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from eva_fast.errors import UsageError, first_line
from eva_fast.files import atomic_write

log = logging.getLogger(__name__)
PROJECT = "eva_fast"


class Logger(Protocol):
    """One of them, open for a run."""

    def add(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's folder, tensorboard/."""

    module, package = "torch.utils.tensorboard", "tensorboard"

    def __init__(self, out: Path, options: Mapping[str, Any]):
        self._writer = importlib.import_module(self.module).SummaryWriter(str(out / "tensorboard"))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases with the name of the run's folder, in the project WANDB_PROJECT."""

    module, package = "wandb", "wandb"

    def __init__(self, out: Path, options: Mapping[str, Any]):
        wandb = importlib.import_module(self.module)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=out.resolve().name, dir=str(out),
            id=_kept(out / "wandb-id", lambda: secrets.token_hex(4)), resume="allow",
            config=dict(options), settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow with the name of the run's folder, at MLFLOW_TRACKING_URI, else in its mlflow/."""

    module, package = "mlflow", "mlflow"

    def __init__(self, out: Path, options: Mapping[str, Any]):
        mlflow = importlib.import_module(self.module)
        self._metric = mlflow.entities.Metric
        place = os.environ.get("MLFLOW_TRACKING_URI") or (out / "mlflow").resolve().as_uri()
        with _files_allowed(place):
            self._client = mlflow.MlflowClient(tracking_uri=place)
            self._id = _kept(out / "mlflow-id", lambda: self._begin(mlflow, out, options))

    def _begin(self, mlflow: Any, out: Path, options: Mapping[str, Any]) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        begun = self._client.create_run(experiment, run_name=out.resolve().name)
        params = [mlflow.entities.Param(name, str(value)) for name, value in options.items()]
        self._client.log_batch(begun.info.run_id, params=params)
        return begun.info.run_id

    def add(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._id)


LOGGERS: dict[str, type[TensorBoard] | type[WandB] | type[MLflow]] = {
    "tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow,
}  # fmt: skip


def names_of(track: str) -> tuple[str, ...]:
    """Of the option `track`. UsageError for a name that there is not."""
    names = tuple(name.strip() for name in track.split(",") if name.strip() not in ("", "none"))
    for name in names:
        if name not in LOGGERS:
            raise UsageError(
                f"track is none, or of {', '.join(LOGGERS)} with commas, got {track!r}"
            )
    return names


def check_installed(track: str) -> None:
    """UsageError where a library is missing that `track` names."""
    for name in names_of(track):
        try:
            importlib.import_module(LOGGERS[name].module)
        except ImportError:
            raise UsageError(
                f"track={name!r} needs {LOGGERS[name].package}: pip install {LOGGERS[name].package}, "
                "or leave it off"
            ) from None


def open_loggers(track: str, out: Path, options: Mapping[str, Any]) -> list[Logger]:
    """Those that `track` names, for the run in `out` with those options. UsageError where one does not
    begin: no key, no server."""
    opened: list[Logger] = []
    for name in names_of(track):
        try:
            opened.append(LOGGERS[name](out, options))
        except Exception as error:
            for logger in opened:
                close(logger)
            raise UsageError(
                f"track={name!r} does not begin: {first_line(error)}; see to its environment variables "
                "(offline: WANDB_MODE=offline, no MLFLOW_TRACKING_URI), or leave it off"
            ) from error
    return opened


def add(logger: Logger, step: int, values: Mapping[str, float]) -> bool:
    """Sends one log point. False, with a warning, where it cannot: no run ends for its server's sake."""
    try:
        logger.add(step, values)
    except Exception as error:
        log.warning(
            "%s is told no more of this run, whose metrics.jsonl has all of it: %s",
            type(logger).__name__, first_line(error),
        )  # fmt: skip
        return False
    return True


def close(logger: Logger) -> None:
    """Ends a record, or warns that it could not."""
    try:
        logger.close()
    except Exception as error:
        log.warning("%s was not closed: %s", type(logger).__name__, first_line(error))


def _kept(path: Path, make: Callable[[], str]) -> str:
    """What a file of the run's folder says, made and written where it is not there."""
    if not path.is_file():
        made = make()
        with atomic_write(path) as draft:
            draft.write_text(made)
    return path.read_text()


@contextlib.contextmanager
def _files_allowed(place: str) -> Iterator[None]:
    """MLflow 3 takes plain files only where it is told that they are wanted; a run's folder wants no
    database."""
    told = place.startswith("file:") and "MLFLOW_ALLOW_FILE_STORE" not in os.environ
    if told:
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    try:
        yield
    finally:
        if told:
            del os.environ["MLFLOW_ALLOW_FILE_STORE"]
