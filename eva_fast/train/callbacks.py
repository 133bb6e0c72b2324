"""What a run tells while it trains, to classes of one's own."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn, optim

from eva_fast.errors import UsageError
from eva_fast.train.stop import StopRequest
from eva_fast.world import world

if TYPE_CHECKING:
    from eva_fast.config import Config
    from eva_fast.train.state import TrainState


class Training:
    """A run under way, as its callbacks see it. To read a tensor of it waits for the device."""

    def __init__(
        self, state: "TrainState", config: "Config", out: Path, total: int, stop: StopRequest,
        student: Callable[[], nn.Module],
    ):  # fmt: skip
        self._state, self._stop, self._student = state, stop, student
        self.config = config
        self.out = out
        """Folder of the run."""
        self.total = total
        """Steps of the whole run."""
        self.metrics: Mapping[str, Any] = {}
        """The newest line of metrics.jsonl; empty before the first."""

    @property
    def step(self) -> int:
        """Steps that are finished."""
        return self._state.step

    @property
    def model(self) -> nn.Module:
        """The module that trains: with `sharding`, this process's shards of it."""
        return self._state.module

    @property
    def optimizer(self) -> optim.Optimizer:
        return self._state.optimizer

    @property
    def first(self) -> bool:
        """Whether this process is the first of its run: the one that writes what is written once."""
        return world().first

    def student(self) -> nn.Module:
        """What is handed on (`PretrainResult.model`), with its values as they are now: in one process
        the one that trains, of several a copy on the first, and all of them must call it."""
        return self._student()

    def stop(self) -> None:
        """Ends the run after the step at hand, with a checkpoint: `stopped_by` is then "callback". After
        the last step there is nothing to end: the run is complete."""
        if self.step < self.total:
            self._stop.ask()


class Callback:
    """Derive from it, say what is to be done when, and give instances as `callbacks=`. Other methods of
    a class of yours may have any name that does not begin with `on_`.

    All are called between two steps, in the order given, on every process of a run, and what they take
    the run waits for. An exception of one ends the run with it; of one process, after a checkpoint.
    Random numbers are best drawn from a generator of one's own: PyTorch's global state is the run's.
    """

    def on_start(self, training: Training) -> None:
        """Before the first step of this call."""

    def on_step(self, training: Training) -> None:
        """After each step. Nothing has waited for the device."""

    def on_log(self, training: Training, metrics: Mapping[str, Any]) -> None:
        """After each line of metrics.jsonl, with its values."""

    def on_checkpoint(self, training: Training, folder: Path) -> None:
        """When a checkpoint is on disk, whole; on the first process alone."""

    def on_end(self, training: Training, stopped_by: str | None) -> None:
        """After the last step and its checkpoint. stopped_by: the name of the signal that ended the run
        early, "callback", or None."""


TOLD = {
    name: tuple(inspect.signature(method).parameters)[1:]
    for name, method in vars(Callback).items()
    if name.startswith("on_")
}
"""{what is called: the names of what it is given}."""


class EachStep(Callback):
    """Calls a function with the number of finished steps after each."""

    def __init__(self, function: Callable[[int], object]):
        self.function = function

    def on_step(self, training: Training) -> None:
        self.function(training.step)


def check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """UsageError for what is no callback, for one that is not in a list, and for a method that would
    never be called, or not as it is written."""
    if not isinstance(callbacks, Iterable):
        raise UsageError(f"callbacks takes a list of callbacks, got {callbacks!r}")
    found = tuple(callbacks)
    for callback in found:
        if not isinstance(callback, Callback):
            hint = ", an instance of it" if isinstance(callback, type) else ""
            raise UsageError(
                f"callbacks are derived from eva_fast.Callback{hint}, and {callback!r} is not"
            )
        for name in dir(callback):
            if name.startswith("on_") and callable(inspect.getattr_static(callback, name)):
                _check_method(callback, name)
    return found


def _check_method(callback: Callback, name: str) -> None:
    """UsageError for a method that no run calls, or that takes other values than it is given."""
    title, method = f"{type(callback).__name__}.{name}", getattr(callback, name)
    if name not in TOLD:
        near = difflib.get_close_matches(name, TOLD, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(TOLD)}"
        raise UsageError(f"{title} is never called; {hint}")
    if inspect.iscoroutinefunction(method):
        raise UsageError(
            f"{title} is async, and nothing would wait for it: write it with def alone"
        )
    try:
        signature = inspect.signature(method)
        signature.bind(*TOLD[name])
    except ValueError:  # of C, which does not say what it takes
        return
    except TypeError as error:
        given = ", ".join(("self", *TOLD[name]))
        raise UsageError(f"{title} must take ({given}), and has {signature}: {error}") from None
