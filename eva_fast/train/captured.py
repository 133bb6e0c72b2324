"""A training step as one CUDA graph: the host launches it whole, and costs next to nothing.

Captured are teacher, forward, backward, clipping, AdamW, guard, moving averages and sums, of all
micro-batches. The batch is copied to where the graph reads it, the learning rate is written there, and
all else that a step changes it changes in place on the device. Random draws come from the generator
that the graph advances, so that captured and eager steps give the same bits.

What a graph cannot see it would leave out: hooks, a teacher or an objective that asks the host. Such
steps run as they are, and the log says why.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from eva_fast.data import Batch
from eva_fast.errors import UsageError, first_line
from eva_fast.layers.members import has_hooks
from eva_fast.layers.sharding import is_sharded
from eva_fast.ops import copies, largest
from eva_fast.ops.graphs import Graph
from eva_fast.teachers import Teacher
from eva_fast.train.step import Outcome, TrainStep

log = logging.getLogger(__name__)

WARM = 3
"""Eager steps before anything is timed or captured: kernels compile, attention is raced."""
TIMED = 2
"""Steps of each way that "auto" times, waiting for the device around them."""
SETTLED = WARM + 2 * TIMED + 1
"""Steps after which nothing is captured or timed any more."""


def obstacle(step: TrainStep) -> str | None:
    """Why the step cannot be captured; None where nothing is known against it."""
    state, objective = step.state, step.objective
    if state.device.type != "cuda":
        return f"a CUDA graph needs an NVIDIA GPU, and the run is on {state.device}"
    if not objective.capturable:
        return f"objective {objective.name!r} does not say that it can be (Objective.capturable)"
    teacher = state.teacher
    if teacher is not None and not (isinstance(teacher, Teacher) and teacher.capturable):
        name = getattr(teacher, "name", type(teacher).__name__)
        return f"teacher {name!r} does not say that it can be (Teacher.capturable)"
    for part in (state.module, teacher):
        for name, module in part.named_modules() if part is not None else ():
            if is_sharded(module):
                return "the module is sharded"
            if has_hooks(module):
                return f"{name or type(module).__name__} has hooks, which a graph would leave out"
    return None


class CapturedStep:
    """A `TrainStep` that becomes a CUDA graph after some steps.

    Args:
        step: what is captured; its state is this one's.
        graph: "auto" keeps the graph where it is measured to be faster, "on" wherever it can be
            captured, "off" never. UsageError for "on" where something is known against it.
    """

    def __init__(self, step: TrainStep, graph: Literal["auto", "on", "off"] = "auto"):
        self.step, self.state, self.graph = step, step.state, graph
        self.objective = step.objective
        self.captured: _Captured | None = None
        """What is replayed; None while steps run as they are."""
        reason = None if graph == "off" else obstacle(step)
        if reason is not None and graph == "on":
            raise UsageError(f"graph='on': the step cannot be captured: {reason}")
        if reason is not None and self.state.device.type == "cuda":
            log.info("the step is not captured as a CUDA graph: %s", reason)
        self._wanted = graph != "off" and reason is None
        self._seen = 0
        self._seconds: dict[str, list[float]] = {"eager": [], "captured": []}

    def __call__(self, batch: Any, rate: float) -> Outcome:
        """Trains on `batch` with learning rate `rate`, by the graph where there is one that fits."""
        if not self._wanted:
            return self.step(batch, rate)
        self._seen += 1
        if self._seen <= WARM:
            return self._eager(batch, rate)
        if self.graph == "auto" and len(self._seconds["eager"]) < TIMED:
            return self._timed("eager", self._eager, batch, rate)
        if self.captured is not None and self.captured.is_outdated():
            self.captured = None  # weights or moments moved: what it reads is gone
        if self.captured is None and not self._capture(batch):
            return self.step(batch, rate)
        assert self.captured is not None
        if not self.captured.fits(batch):
            return self._eager(batch, rate)
        if self.graph == "auto" and len(self._seconds["captured"]) < TIMED:
            outcome = self._timed("captured", self.captured, batch, rate)
            if len(self._seconds["captured"]) == TIMED:
                self._decide()
            return outcome
        return self.captured(batch, rate)

    def _eager(self, batch: Any, rate: float) -> Outcome:
        """A step as it is, on a stream that is not the default one, as it will be captured."""
        stream, current = _side_stream(self.state.device), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            outcome = self.step(batch, rate)
        current.wait_stream(stream)
        return outcome

    def _capture(self, batch: Any) -> bool:
        try:
            self.captured = _Captured(self.step, batch)
        except (RuntimeError, AttributeError) as error:
            reason = first_line(error)
            if self.graph == "on":
                raise UsageError(f"graph='on': the step cannot be captured: {reason}") from error
            log.warning("the step is not captured as a CUDA graph: %s", reason)
            self._wanted = False
        return self._wanted

    def _timed(self, way: str, run: Callable[..., Outcome], batch: Any, rate: float) -> Outcome:
        torch.cuda.synchronize(self.state.device)
        start = time.perf_counter()
        outcome = run(batch, rate)
        torch.cuda.synchronize(self.state.device)
        self._seconds[way].append(time.perf_counter() - start)
        return outcome

    def _decide(self) -> None:
        eager, captured = (1e3 * min(self._seconds[way]) for way in ("eager", "captured"))
        if captured <= eager:
            log.info("the step is a CUDA graph: %.1f ms, %.1f ms without", captured, eager)
        else:
            log.info("the step is not a CUDA graph: %.1f ms, %.1f ms with", eager, captured)
            self.captured, self._wanted = None, False


class _Captured:
    """One capture of a step. RuntimeError where CUDA refuses it."""

    def __init__(self, step: TrainStep, batch: Any):
        self.step, self.state = step, step.state
        self.batch = Batch({n: v.clone() for n, v in batch.items() if _on_device(v)})
        """What the graph reads. Fields on the CPU are not in it: a graph cannot read them."""
        self.form = _form(batch)
        if None in self.form:
            raise RuntimeError("the batch has a ragged field, whose size changes from step to step")
        self.rate = torch.zeros((), device=self.state.device)
        for group in self.state.optimizer.param_groups:
            group["lr"] = self.rate
        for parameter in self.state.module.parameters():
            parameter.grad = None  # eager ones: their memory is the graph's now
        graph = Graph()
        with graph.capture(_side_stream(self.state.device)):
            self.outcome = step.run(self.batch)
        self.graph = graph
        self._addresses, self._calls = self._where(), self.state.optimizer.calls

    def fits(self, batch: Any) -> bool:
        """Whether it was captured with such a batch."""
        return _form(batch) == self.form

    def is_outdated(self) -> bool:
        """Whether something that it reads or writes is elsewhere by now."""
        return self._calls is not self.state.optimizer.calls or self._addresses != self._where()

    def __call__(self, batch: Any, rate: float) -> Outcome:
        for name, value in self.batch.items():
            value.copy_(batch[name], non_blocking=True)
        self.rate.fill_(rate)
        for parameter, copy in self.state.optimizer.copies.items():
            if not copies.is_current(copy, parameter):  # weights that were loaded, say
                copies.write(copy, parameter)
        for parameter, parts in self.state.optimizer.largest.items():
            if not copies.is_current(parts, parameter):
                largest.fill(parts, parameter)
        self.graph.replay()
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        self.state.step += 1
        return self.outcome

    def _where(self) -> tuple[Any, ...]:
        module = self.state.module
        return (module.training, *map(Tensor.data_ptr, module.parameters()))


def _on_device(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_cuda


def _form(batch: Any) -> tuple[Any, ...]:
    """Shapes and dtypes of what a graph reads of a batch; None for a ragged field."""
    return tuple(
        (name, value.shape, value.dtype) if isinstance(value, Tensor) else None
        for name, value in batch.items()
    )


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]
