"""What one way to cut a batch costs: memory, and the time of a step by its parts."""

from dataclasses import dataclass

import torch

from eva_fast.planning.count import StepCount
from eva_fast.planning.counter import count_step_at
from eva_fast.planning.memory import block_bytes, estimate
from eva_fast.planning.network import exposed_of, exposed_seconds, ring_seconds
from eva_fast.planning.rates import FP8, Device, wide
from eva_fast.planning.result import Option
from eva_fast.planning.roofline import (
    Prediction,
    operator_seconds,
    optimizer_seconds,
    part_seconds,
    predict_step,
    quantise_seconds,
)
from eva_fast.planning.run import PlannedRun
from eva_fast.planning.students import OURS


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """The fixed part of a plan."""

    device: Device
    run: PlannedRun
    gpus: int
    batch: int
    formulation: str
    sharding: str
    share: float
    """Of the blocks, checkpointed where an option checkpoints."""
    ema: bool

    def count(self, micro: int, recompute: float = 0.0) -> StepCount:
        """One pass of `micro` images."""
        if self.formulation == OURS:
            return self.run.count(micro, recompute)
        return count_step_at(
            self.formulation, self.run.setting.vit, micro, recompute=recompute, **self._options
        )

    def option(self, micro: int, checkpointing: bool) -> Option:
        """The batch in passes of `micro` images."""
        count = self.count(micro, self.share if checkpointing else 0.0)
        passes = self.batch // self.gpus // micro
        again = 0
        if checkpointing:
            again = self._block_bytes(micro)
        memory = estimate(
            count,
            self.device,
            recomputed=again,
            sharding=self.sharding,
            gpus=self.gpus,
            teacher=self._teacher_bytes // self._teacher_spread,
            ema=self.ema,
        )
        prediction, wire, exposed = self._time(count, passes, self.share if checkpointing else 0.0)
        return Option(
            micro_batch=micro,
            accumulate=passes,
            checkpointing=checkpointing,
            share=self.share,
            memory=memory,
            fits=memory.total <= self.device.memory_bytes,
            prediction=prediction,
            wire_seconds=wire,
            exposed_seconds=exposed,
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.run.dtype

    @property
    def _spread(self) -> int:
        """Over how many devices the optimiser's state is."""
        if self.sharding == "replicate":
            return 1
        return min(self.gpus, self.device.gpus_per_node) if self.sharding == "hybrid" else self.gpus

    @property
    def _teacher_bytes(self) -> int:
        return self.run.teacher.bytes if self.run.teacher else 0

    @property
    def _teacher_spread(self) -> int:
        """Over how many devices the teacher is: none, or those of a machine."""
        shared = self.run.setting.config.run.teacher_sharding == "shard"
        return min(self.gpus, self.device.gpus_per_node) if shared else 1

    @property
    def _options(self) -> dict:
        return {"masked": self.run.masked, "dtype": self.dtype, "device": self.device.kind}

    def _block_bytes(self, micro: int) -> int:
        if self.formulation == OURS:
            return self.run.block_bytes(micro)
        return block_bytes(self.formulation, self.run.setting.vit, micro, **self._options)

    def _time(
        self, count: StepCount, passes: int, recompute: float
    ) -> tuple[Prediction, float, float]:
        device, micro = self.device, count.batch
        name = str(self.dtype).removeprefix("torch.")
        one = predict_step(count, device)
        backward = sum(part_seconds(count, device, "backward").values())
        parts = {k: passes * v for k, v in one.parts.items()}
        view = self.run.teacher_operators(micro)
        usual = str(wide(self.dtype)).removeprefix("torch.")
        teaching = sum(operator_seconds(op, device, usual) for op in view)
        parts["teacher"] += passes * teaching
        parameters = count.parameters
        spread = self._spread
        parts["optimizer"] += optimizer_seconds(
            self.formulation, parameters // spread, device, name
        )
        if self.dtype == FP8:
            once = quantise_seconds(parameters, device, self.gpus > 1)
            parts["quantise"] += once * (passes * (1 + recompute) if self.gpus > 1 else 1)
        wire, exposed = exposed_seconds(
            parameters,
            wide(self.dtype).itemsize,
            self.gpus,
            device,
            self.sharding,
            backward,
            passes,
        )
        gather = ring_seconds(self._teacher_bytes, self._teacher_spread, device)
        wire += passes * gather
        exposed += passes * exposed_of(gather, teaching)
        parts["communication"] = exposed
        host = passes * (one.host_seconds + device.host_seconds * len(view))
        prediction = Prediction(
            device=device.name,
            batch=micro * passes,
            seconds=max(sum(parts.values()), host),
            parts=parts,
            host_seconds=host,
            model_flops=one.model_flops * passes,
            peak_flops=one.peak_flops,
        )
        return prediction, wire, exposed
