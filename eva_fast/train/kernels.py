"""Which kernels a run uses: forced, as measured for its shapes, or as its checkpoint says."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eva_fast import world
from eva_fast.objectives.base import Objective
from eva_fast.objectives.setting import Setting
from eva_fast.ops import FusedAdamW, choose
from eva_fast.ops.settle import settle, take_over
from eva_fast.train.guard import Guard
from eva_fast.train.state import TrainState
from eva_fast.train.step import TrainStep
from eva_fast.train.sums import Sums

log = logging.getLogger(__name__)
# A CPU works through a batch image by image or tile by tile: which implementation is the faster shows
# in so many images (those of 8, 16, 32 and 64 chose alike), a quarter of the time of a batch of 64.
CPU_IMAGES = 16


def settle_kernels(
    setting: Setting,
    objective: Objective,
    state: TrainState,
    *,
    kept: dict[str, str] | None = None,
) -> dict[str, str]:
    """Chooses implementations for the process and returns {op: implementation}.

    The run's option `kernels` says how: "auto" measures on a micro-batch of noise, on a CPU of
    at most `CPU_IMAGES` (or reads the measurement kept on disk); "torch", "native" and "triton" force.

    Args:
        state: the run's; it is left as it was.
        kept: the choice of the run that is resumed; it is taken over, since another kernel may
            round otherwise and the run would not end with the same weights.
    """
    mode, device, optim = setting.config.run.kernels, setting.device, setting.config.optim
    if mode != "auto":
        choose.set_kernels(mode)
        return {}
    if kept is not None:
        take_over(kept, device.type)
        return kept
    with choose.random_state_kept(device):
        share = optim.accumulate * world.asked_for().size
        size, module = optim.batch_size // share, state.module.train()
        if device.type == "cpu":
            size = min(size, CPU_IMAGES)
        batch, target = objective.example(setting, state.teacher, size)
        scratch = TrainState(
            module=module, teacher=None, loader=None, optimizer=state.optimizer, device=device,
            guard=Guard(device, scaled=False), sums=Sums(objective.metrics, device),
        )  # fmt: skip
        step = TrainStep(scratch, objective, lambda batch: target, clip_grad=optim.clip_grad)
        with _unchanged(module, state.optimizer):
            found = settle(
                lambda: step(batch, rate=0.0),
                device,
                _shapes(setting, objective, module, batch, target),
                objective.alternatives(module, batch, target),
            )
    return {op: choice.implementation for op, choice in found.items()}


@contextmanager
def _unchanged(module: nn.Module, optimizer: FusedAdamW) -> Iterator[None]:
    """Undoes what steps with learning rate 0 change: buffers, gradients, moments."""
    buffers = [(b, b.clone()) for b in module.buffers()]
    rates = [group["lr"] for group in optimizer.param_groups]
    yield
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = rate
    for moments in optimizer.state.values():
        for tensor in moments.values():
            tensor.zero_()
    optimizer.zero_grad(set_to_none=True)


def _shapes(
    setting: Setting, objective: Objective, module: nn.Module, batch: Any, target: Tensor | None
) -> dict[str, Any]:
    """What the choice depends on beside the machine."""
    return {
        "objective": objective.name,
        "sizes": str(setting.sizes),
        "parameters": [tuple(p.shape) for p in module.parameters()],
        "dtype": str(setting.compute_dtype),
        "batch": {name: str(getattr(value, "shape", "ragged")) for name, value in batch.items()},
        "target": None if target is None else tuple(target.shape),
    }
