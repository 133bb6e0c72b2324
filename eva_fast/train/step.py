"""The training step: the one that a run makes, benchmarks time and the choice of kernels watches.

    for each micro-batch:  target = teacher's answer;  backward of the scaled loss / micro-batches
    norm of all gradients -> clip, AdamW, or nothing where loss or norm is not finite or the loss a spike
    the objective's own update, moving average, mean of the targets, sums for the next log point

Nothing in it waits for the device, and what never changes is made at set-up. All that it changes
is written in place, so that a step can be captured as a CUDA graph (`eva_fast.train.captured`).

Of several processes each has its share of the batch. Gradients are averaged as they appear
(`eva_fast.train.sharding`), loss and metrics here, so that all decide alike about a step.
"""

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eva_fast import world
from eva_fast.layers.sharding import is_sharded
from eva_fast.objectives.base import Objective
from eva_fast.objectives.request import Ask
from eva_fast.train.baseline import LOSS
from eva_fast.train.optimizer import gradient_norm
from eva_fast.train.state import TrainState


class Outcome(NamedTuple):
    """What a step says of itself, on the device. The next step overwrites `loss`."""

    loss: Tensor
    """float32 [], mean over the batch."""
    norm: Tensor
    """float32 [], of the gradients before clipping."""
    applied: Tensor
    """bool [], False where the step was skipped."""


class TrainStep:
    """One optimiser step on one batch, which moves `state`.

    Args:
        state: module, optimiser, guard, moving average, baseline and sums that the step changes in
            place.
        objective: gives the loss of a micro-batch, and moves what it moves after the step.
        ask: batch -> target (`eva_fast.objectives.request.answer`).
        clip_grad: largest global gradient norm; 0 turns clipping off.
        accumulate: micro-batches a step; divides the batch size.
    """

    def __init__(
        self,
        state: TrainState,
        objective: Objective,
        ask: Ask,
        *,
        clip_grad: float,
        accumulate: int = 1,
    ):
        self.state, self.objective, self.ask = state, objective, ask
        self.clip_grad, self.accumulate = clip_grad, accumulate
        self._parameters = [p for p in state.module.parameters() if p.requires_grad]
        updated = {p for group in state.optimizer.param_groups for p in group["params"]}
        if not updated or updated != set(self._parameters):
            raise ValueError("the optimiser must hold the parameters of the module that train")
        self._loss = torch.zeros((), device=state.device)
        self._several = world.world().size > 1
        own, teacher = state.own, state.teacher
        self._own = contextlib.nullcontext if own is None else own.part
        shared = teacher is not None and is_sharded(teacher)
        self._teaching = contextlib.nullcontext if shared else self._own

    def __call__(self, batch: Any, rate: float) -> Outcome:
        """Trains on `batch` with learning rate `rate`."""
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        outcome = self.run(batch)
        self.state.step += 1
        return outcome

    def run(self, batch: Any) -> Outcome:
        """What the device does in a step, with the learning rate that the optimiser has."""
        state = self.state
        loss, metrics = self._gradients(batch)
        if self._several:
            loss, metrics = _of_all(loss, metrics)
        norm = state.guard.unscale(gradient_norm(self._parameters))
        with self._own():
            applied = state.guard.step(state.optimizer, loss, norm, self.clip_grad)
        with torch.no_grad():
            self.objective.after_step(state.module, applied)
        if state.ema is not None:
            state.ema.update(applied)
        if state.baseline is not None:
            state.baseline.update(applied)
        state.sums.add(applied, loss, norm, metrics)
        return Outcome(loss, norm, applied)

    def _target(self, batch: Any) -> Tensor | None:
        """The teacher's answer, or what the objective makes of the batch itself."""
        answer = self.ask(batch)
        if answer is not None:
            return answer
        with torch.no_grad():
            return self.objective.target(self.state.module, batch)

    def _gradients(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Leaves the gradients of the scaled loss in the parameters; (mean loss, mean metrics)."""
        for parameter in self._parameters:
            parameter.grad = None
        loss, parts, baseline = self._loss.zero_(), self.accumulate, self.state.baseline
        metrics: dict[str, Tensor] = {}
        for number, part in enumerate(batch.chunk(parts), 1):
            with self._teaching():
                target = self._target(part)
            value, measured = self._loss_of(part, target, last=number == parts)
            value = value / parts
            # by this thread: PyTorch's thread for a GPU would take Python's objects to another core
            with torch.autograd.set_multithreading_enabled(False):
                self.state.guard.scale(value).backward()
            loss += value.detach()
            if baseline is not None and target is not None:
                measured = {**measured, LOSS: baseline.score(target, 1 / parts)}
            for name in self.state.sums.metrics:
                found = measured[name].detach() / parts
                metrics[name] = metrics[name] + found if name in metrics else found
        return loss, metrics

    def _loss_of(
        self, part: Any, target: Tensor | None, last: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of a micro-batch."""
        whole = self.state.whole
        if whole is None:
            return self.objective.loss(self.state.module, part, target)
        if self.accumulate > 1:
            whole.begin(last)
        return whole(part, target)


def _of_all(loss: Tensor, metrics: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Means over the processes, by one exchange; not finite where any has a value that is not."""
    means = world.mean_(torch.stack([loss, *(m.float() for m in metrics.values())]))
    return means[0], dict(zip(metrics, means[1:].unbind()))
