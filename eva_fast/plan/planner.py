"""`eva-fast plan`: does a run fit, how fast will it go, how long will it take. Every figure of time
is predicted; memory and arithmetic are counted; what is assumed is listed with them."""

from dataclasses import asdict, dataclass

import torch

from eva_fast.errors import UsageError
from eva_fast.model.sizes import ModelSizes, sizes_of
from eva_fast.plan.counter import StepCount, count_step_at
from eva_fast.plan.devices import device as find_device
from eva_fast.plan.memory import SHARDING, TEACHER, Memory, estimate, saved_with_checkpoint
from eva_fast.plan.network import exposed_seconds
from eva_fast.plan.rates import Device
from eva_fast.plan.roofline import (
    Prediction,
    optimizer_seconds,
    parameter_count,
    part_seconds,
    predict_step,
)
from eva_fast.plan.students import check_formulation

EVA_IMAGES = 29.6e6
EVA_EPOCHS = 150.0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One way to cut the global batch: micro-batch an accumulation pass and checkpointing."""

    micro_batch: int
    accumulate: int
    checkpointing: bool
    memory: Memory
    fits: bool
    prediction: Prediction
    """Of the whole step on one GPU, its accumulation passes and communication included."""
    wire_seconds: float
    exposed_seconds: float

    def images_per_second(self, gpus: int) -> float:
        """Predicted, over all GPUs."""
        return gpus * self.prediction.images_per_second


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What `plan` found. `best` is the quickest option that fits, None when none does."""

    model: str
    sizes: ModelSizes
    device: Device
    gpus: int
    batch: int
    precision: str
    formulation: str
    sharding: str
    epochs: float
    images: float
    count: StepCount
    options: tuple[Option, ...]
    best: Option | None

    @property
    def days(self) -> float | None:
        """Predicted days for all epochs; None when nothing fits."""
        if self.best is None:
            return None
        return self.epochs * self.images / self.best.images_per_second(self.gpus) / 86400

    def to_dict(self) -> dict:
        """Everything as plain values, grouped as counted, predicted and assumed."""
        best = self.best
        return {
            "model": self.model,
            "sizes": asdict(self.sizes),
            "device": self.device.title,
            "gpus": self.gpus,
            "batch": self.batch,
            "precision": self.precision,
            "formulation": self.formulation,
            "sharding": self.sharding,
            "fits": best is not None,
            "counted": {
                "parameters": parameter_count(self.sizes),
                **self.count.summary(),
            },
            "predicted": None
            if best is None
            else {
                "images_per_second": best.images_per_second(self.gpus),
                "days": self.days,
                "epochs": self.epochs,
                "images_per_epoch": self.images,
                **best.prediction.summary(),
            },
            "best": None if best is None else _option_dict(best, self.gpus),
            "options": [_option_dict(o, self.gpus) for o in self.options],
            "memory_limit_bytes": self.device.memory_bytes,
            "assumed": {
                "gemm_share_of_peak": {
                    k: r.points[-1][1] / self.device.peak_flops[k]
                    for k, r in self.device.gemm.items()
                },
                "attention_share_of_peak": {
                    k: r.points[-1][1] / self.device.peak_flops[k]
                    for k, r in self.device.attention.items()
                },
                "stream_bytes_per_second": self.device.stream.points[-1][1],
                "teacher": "CLIP ViT-L/14, forward only",
            },
        }


def _option_dict(option: Option, gpus: int) -> dict:
    return {
        "micro_batch": option.micro_batch,
        "accumulate": option.accumulate,
        "checkpointing": option.checkpointing,
        "fits": option.fits,
        "memory_bytes": {**option.memory.by_kind(), "total": option.memory.total},
        "predicted_images_per_second": option.images_per_second(gpus),
        "predicted_step_seconds": option.prediction.seconds,
        "predicted_mfu": option.prediction.mfu,
        "predicted_wire_seconds": option.wire_seconds,
        "predicted_exposed_seconds": option.exposed_seconds,
    }


def plan(
    model: str = "eva_g_patch14_224",
    device: str = "h100",
    gpus: int = 1,
    batch: int = 4096,
    *,
    precision: str = "bf16",
    formulation: str = "eva_fast",
    sharding: str = "none",
    epochs: float = EVA_EPOCHS,
    images: float = EVA_IMAGES,
    teacher: bool = True,
    predict_dim: int = 768,
    require_fit: bool = True,
) -> Plan:
    """Plans a pre-training run.

    Args:
        model: student by name, `eva_SIZE_patchP_R`.
        device: a100-40, a100-80, h100, h100-pcie, h200, b200, or cpu (measured here, fp32).
        gpus: number of devices, each a data-parallel replica or shard.
        batch: images a step over all devices.
        precision: bf16, fp16 or fp32; on the CPU always fp32.
        formulation: eva_fast, tuned or official.
        sharding: none, optimizer (ZeRO-1) or full (FSDP).
        epochs, images: length of the run: passes, and images a pass.
        teacher: whether CLIP ViT-L/14 runs beside the student.
        predict_dim: the teacher's feature dimension.
        require_fit: ValueError when no cut of the batch fits; otherwise `best` is None.

    Returns a Plan: cuts of the per-GPU batch, each at most half of the last, with and without
    checkpointing.
    ValueError for bad use, naming what is possible.
    """
    sizes = sizes_of(model, predict_dim=predict_dim)
    check_formulation(formulation)
    for name, value in (("gpus", gpus), ("batch", batch)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if epochs <= 0 or images <= 0:
        raise UsageError(f"epochs and images must be above 0, got {epochs} and {images}")
    if batch % gpus:
        raise UsageError(f"batch {batch} is not a multiple of {gpus} GPUs")
    if sharding not in SHARDING:
        raise UsageError(f"unknown sharding {sharding!r}: one of {', '.join(SHARDING)}")
    if precision not in DTYPES:
        raise UsageError(f"unknown precision {precision!r}: one of {', '.join(DTYPES)}")
    found = find_device(device, formulation)
    if found.kind == "cpu":
        precision = "fp32"
        if gpus > 1:
            raise UsageError("the CPU is one device: gpus must be 1")
    run = _Run(found, sizes, gpus, batch, formulation, DTYPES[precision], sharding, teacher)
    options = tuple(
        run.option(micro, checkpointing)
        for micro in _cuts(batch // gpus)
        for checkpointing in (False, True)
    )
    fitting = [o for o in options if o.fits]
    best = max(fitting, key=lambda o: o.images_per_second(gpus), default=None)
    if best is None and require_fit:
        least = min(options, key=lambda o: o.memory.total).memory
        kinds = ", ".join(f"{k} {v / 1e9:.1f}" for k, v in least.by_kind().items())
        raise UsageError(
            f"{model} does not fit on {found.title} ({found.memory_bytes / 1e9:.0f} GB): the "
            f"smallest cut needs {least.total / 1e9:.1f} GB ({kinds}); try sharding=optimizer or "
            "full over more GPUs, or a smaller model"
        )
    return Plan(
        model=model,
        sizes=sizes,
        device=found,
        gpus=gpus,
        batch=batch,
        precision=precision,
        formulation=formulation,
        sharding=sharding,
        epochs=epochs,
        images=images,
        count=run.count(best.micro_batch if best else batch // gpus),
        options=options,
        best=best,
    )


def _cuts(batch: int) -> list[int]:
    """Micro-batches that divide a device's batch: itself, then each time the largest that is at
    most half as big, down to single images."""
    cuts = [batch]
    while cuts[-1] > 1:
        cuts.append(next(n for n in range(cuts[-1] // 2, 0, -1) if batch % n == 0))
    return cuts


@dataclass(frozen=True, slots=True)
class _Run:
    """The fixed part of a plan, and what one cut of the batch costs."""

    device: Device
    sizes: ModelSizes
    gpus: int
    batch: int
    formulation: str
    dtype: torch.dtype
    sharding: str
    teacher: bool

    @property
    def _options(self) -> dict:
        return {"dtype": self.dtype, "device": self.device.kind}

    def count(self, micro: int) -> StepCount:
        return count_step_at(self.formulation, self.sizes, micro, **self._options)

    def option(self, micro: int, checkpointing: bool) -> Option:
        count = self.count(micro)
        passes = self.batch // self.gpus // micro
        saved = count.saved_bytes
        if checkpointing:
            saved = saved_with_checkpoint(self.formulation, self.sizes, micro, **self._options)
        memory = estimate(
            count,
            self.device,
            saved_bytes=saved,
            sharding=self.sharding,
            gpus=self.gpus,
            teacher=TEACHER if self.teacher else None,
        )
        prediction, wire, exposed = self._time(count, passes, checkpointing)
        return Option(
            micro_batch=micro,
            accumulate=passes,
            checkpointing=checkpointing,
            memory=memory,
            fits=memory.total <= self.device.memory_bytes,
            prediction=prediction,
            wire_seconds=wire,
            exposed_seconds=exposed,
        )

    def _time(
        self, count: StepCount, passes: int, checkpointing: bool
    ) -> tuple[Prediction, float, float]:
        device, micro = self.device, count.batch
        name = str(self.dtype).removeprefix("torch.")
        one = predict_step(count, device)
        extra = part_seconds(count, device, "forward") if checkpointing else {}
        backward = sum(part_seconds(count, device, "backward").values())
        if self.teacher:
            view = count_step_at("tuned", TEACHER, micro, backward=False, **self._options)
            extra["teacher"] = sum(part_seconds(view, device).values())
        parts = {k: passes * (v + extra.get(k, 0.0)) for k, v in one.parts.items()}
        parameters = parameter_count(self.sizes)
        share = self.gpus if self.sharding != "none" else 1
        parts["optimizer"] += optimizer_seconds(self.formulation, parameters // share, device, name)
        wire, exposed = exposed_seconds(
            parameters, self.dtype.itemsize, self.gpus, device, self.sharding, backward, passes
        )
        parts["communication"] = exposed
        prediction = Prediction(
            device=device.name,
            batch=micro * passes,
            seconds=max(sum(parts.values()), passes * one.host_seconds),
            parts=parts,
            host_seconds=passes * one.host_seconds,
            model_flops=one.model_flops * passes,
            peak_flops=one.peak_flops,
        )
        return prediction, wire, exposed
