"""What a run of several processes does once, or together: kernels are chosen, the module is sharded, put
together for pictures and weight files. In one process all of it is the plain thing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from eva_fast import world
from eva_fast.layers import drop_copies
from eva_fast.objectives.base import Objective
from eva_fast.objectives.setting import Setting
from eva_fast.ops import choose
from eva_fast.ops.shards import full
from eva_fast.train.kernels import settle_kernels
from eva_fast.train.sharding import shard, whole_state
from eva_fast.train.state import TrainState
from eva_fast.train.teacher_sharding import shard_teacher


def begin(
    setting: Setting,
    objective: Objective,
    module: nn.Module,
    teacher: nn.Module | None,
    loader: Any,
    *,
    kept: dict[str, str] | None,
    first: Callable[[], None] | None,
) -> TrainState:
    """The state before the first step, its kernels chosen: of several processes by the first one, on
    the module as a whole, and then the module is sharded.

    kept: the choice of the run that goes on. first: what is done once in a run, before the first step,
    with the module and the teacher as they are."""
    to = world.world()
    if to.size == 1:
        state = TrainState.begin(setting, objective, module, teacher, loader)
        state.kernels = settle_kernels(setting, objective, state, kept=kept)
        if first is not None:
            first()
        return state
    if to.first and kept is None:
        with world.joined(world.ALONE):
            alone = TrainState.begin(setting, objective, module, teacher, loader)
            kept = settle_kernels(setting, objective, alone)
            drop_copies(module)
            del alone
    kept = world.from_first(kept)
    if first is not None:
        with world.joined(world.ALONE):
            first()
        _as_the_first(module, teacher)
    whole = shard(
        objective, module, to, setting.config.run.sharding, setting.compute_dtype
    )  # before the optimiser is made: it holds the shards
    state = TrainState.begin(setting, objective, module, teacher, loader, whole)
    state.kernels = settle_kernels(setting, objective, state, kept=kept)
    if teacher is not None and setting.config.run.teacher_sharding == "shard":
        state.teacher_fingerprint()
        shard_teacher(teacher, to)
    return state


def _as_the_first(*modules: nn.Module | None) -> None:
    """Buffers, and a teacher's statistics, as process 0 has them: others may round otherwise."""
    import torch.distributed as dist

    for module in modules:
        for buffer in module.buffers() if module is not None else ():
            dist.broadcast(buffer, src=0)


def whole_module(setting: Setting, objective: Objective, state: TrainState) -> nn.Module:
    """The module with all its values: itself in one process; of several the first gets a copy, and the
    others their shards. All must call it."""
    if state.whole is None:
        return state.module
    values = whole_state(state.module)
    if not world.world().first:
        return state.module
    with choose.random_state_kept(setting.device):
        copy = objective.build(setting, state.teacher)
    copy.load_state_dict(values)
    return copy.to(setting.device).train(state.module.training)


def save(setting: Setting, objective: Objective, state: TrainState, path: Path) -> nn.Module:
    """Writes what the objective hands on to `path`, and its average to model_ema.safetensors beside
    it; returns the former, of all but the first process as shards. All must call it."""
    module = whole_module(setting, objective, state).eval()
    average = None
    if state.ema is not None:
        average = {name: full(value) for name, value in state.ema.weights.items()}
    if not world.world().first:
        return objective.exported(module)
    part = objective.save(module, path)
    if average is not None:
        objective.save(module, path.with_name("model_ema.safetensors"), average)
    return part
