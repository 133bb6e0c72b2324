"""All that changes while a run trains, and how it is saved and restored."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eva_fast.errors import UsageError
from eva_fast.layers import keep_copies, keep_largest
from eva_fast.objectives.base import Objective
from eva_fast.objectives.setting import Setting
from eva_fast.ops import FusedAdamW
from eva_fast.teachers import Teacher
from eva_fast.train import checkpoint
from eva_fast.train.baseline import LOSS, Baseline
from eva_fast.train.checkpoint_writer import Writer
from eva_fast.train.guard import Guard
from eva_fast.train.optimizer import Ema, make_optimizer
from eva_fast.train.own_time import OwnTime
from eva_fast.train.same_data import without_names
from eva_fast.train.same_teacher import fingerprint
from eva_fast.train.sharding import Whole
from eva_fast.train.sums import Sums
from eva_fast.world import of_all, world

# What a run that goes on may change in the optimiser; its learning rate is set each step.
SETTINGS = ("betas", "eps", "weight_decay")


@dataclass(kw_only=True)
class TrainState:
    """A run between two steps. `step` counts finished optimiser steps."""

    module: nn.Module
    """What trains or moves with training."""
    teacher: nn.Module | None
    loader: Any
    optimizer: FusedAdamW
    guard: Guard
    sums: Sums
    device: torch.device
    whole: Whole | None = None
    """What gives the loss where the module is sharded over several processes."""
    ema: Ema | None = None
    baseline: Baseline | None = None
    """Of what a constant scores; `sums` then has its `baseline_loss` among the metrics."""
    step: int = 0
    kernels: dict[str, str] = field(default_factory=dict)
    """{op: implementation}, kept so that a resumed run rounds as before."""
    _fingerprint: str | None = None

    def __post_init__(self):
        self.optimizer.allocate()
        self.own = OwnTime(self.device) if world().size > 1 else None
        """Of several processes: tells the slow ones."""

    @classmethod
    def begin(
        cls,
        setting: Setting,
        objective: Objective,
        module: nn.Module,
        teacher: nn.Module | None,
        loader: Any,
        whole: Whole | None = None,
    ) -> "TrainState":
        """The state before the first step. `module` is on its device, with its initial values; `whole`
        is what `eva_fast.train.sharding` made of it."""
        optim, device, dtype = setting.config.optim, setting.device, setting.compute_dtype
        baseline = Baseline.of(objective, objective.target_width(module, teacher), device)
        return cls(
            module=module,
            teacher=teacher,
            loader=loader,
            optimizer=make_optimizer(
                module,
                optim.lr,
                optim.betas,
                optim.eps,
                optim.weight_decay,
                copies=keep_copies(module, dtype),
                largest=keep_largest(module),
            ),
            guard=Guard(device, scaled=dtype == torch.float16, spike=optim.spike),
            sums=Sums(objective.metrics + ((LOSS,) if baseline else ()), device),
            device=device,
            whole=whole,
            ema=Ema(module, optim.ema) if optim.ema else None,
            baseline=baseline,
        )

    def save(self, writer: Writer, options: dict[str, Any]) -> None:
        """Has a checkpoint written, beside what follows: it holds the state as it is now."""
        state = {
            "step": self.step,
            **self._positions(),
            "kernels": self.kernels,
            "teacher": self.teacher_fingerprint(),
            "options": options,
        }
        writer.start(self.step, self._tensors(), state)

    def _positions(self) -> dict[str, Any]:
        """In the data: the same for all processes, but where each reads streams of its own."""
        own = self.loader.state_dict()
        if world().size == 1 or own.get("feed", {}).get("rank") is None:
            return {"loader": own}
        every = of_all(own)
        return {"loader": every[0], "loaders": every}

    def teacher_fingerprint(self) -> str | None:
        """Of the frozen teacher: made once a run, before it is sharded."""
        if self._fingerprint is None and self.teacher is not None:
            self._fingerprint = fingerprint(self.teacher)
        return self._fingerprint

    def restore(self, folder: Path, data_moved: bool = False, with_data: bool = True) -> None:
        """Continues exactly where the checkpoint was written: weights, optimiser, random state,
        position in the data. The optimiser's settings stay those of this run, which may change
        them. data_moved: the names of the images may be others. with_data=False leaves the position in
        the data. ValueError if the checkpoint is of
        another module or other data."""
        from torch.distributed.checkpoint.state_dict import set_state_dict

        tensors, state = self._tensors(), checkpoint.run_state(folder)
        if "random.cuda" not in checkpoint.names_in(folder):  # the run began on a CPU
            tensors["random"].pop("cuda", None)
        if self.baseline is not None and "baseline.mean" not in checkpoint.names_in(folder):
            del (
                tensors["baseline"],
                tensors["window"],
            )  # of a run that had none yet: both start anew
        if "spikes" not in checkpoint.names_in(folder):
            tensors.pop("spikes", None)  # likewise
        checkpoint.load(folder, tensors)
        settings = [{k: group[k] for k in SETTINGS} for group in self.optimizer.param_groups]
        set_state_dict(
            self.module,
            self.optimizer,
            model_state_dict=tensors["model"],
            optim_state_dict=tensors["optimizer"],
        )
        for group, chosen in zip(self.optimizer.param_groups, settings):
            group.update(chosen)
        self.guard.restore(tensors)
        if "window" in tensors:
            self.sums.tensor.copy_(tensors["window"])
        if self.baseline is not None and "baseline" in tensors:
            for name, tensor in self.baseline.tensors().items():
                tensor.copy_(tensors["baseline"][name])
        if self.ema is not None:
            for name, weight in self.ema.weights.items():
                weight.copy_(tensors["ema"][name])
        if tensors["whitening"]:
            assert self.teacher is not None
            self.teacher.load_state_dict(tensors["whitening"])
        torch.set_rng_state(tensors["random"]["cpu"])
        if "cuda" in tensors["random"]:
            torch.cuda.set_rng_state(tensors["random"]["cuda"], self.device)
        if with_data:
            every = state.get("loaders", [])
            # of another number of processes: the loader says what it cannot do
            place = every[world().rank] if len(every) == world().size else state["loader"]
            try:
                self.loader.load_state_dict(without_names(place) if data_moved else place)
            except (KeyError, TypeError, AttributeError) as error:
                raise UsageError(f"{folder} names no place in this data ({error!r})") from None
        self.step = state["step"]

    def _tensors(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_state_dict

        model, optimizer = get_state_dict(self.module, self.optimizer)
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        tensors = {
            "model": model,
            "optimizer": optimizer,
            **self.guard.tensors(),
            "window": self.sums.tensor,
            "whitening": self.teacher.state_dict() if isinstance(self.teacher, Teacher) else {},
            "random": random,
        }
        if self.ema is not None:
            tensors["ema"] = self.ema.weights
        if self.baseline is not None:
            tensors["baseline"] = self.baseline.tensors()
        return tensors
