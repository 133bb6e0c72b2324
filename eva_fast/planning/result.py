"""What a plan found, and the same as plain values."""

from dataclasses import asdict, dataclass
from typing import Any

from eva_fast.model import Sizes
from eva_fast.planning.count import StepCount
from eva_fast.planning.memory import Memory
from eva_fast.planning.rates import Device
from eva_fast.planning.roofline import Prediction


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One way to cut the global batch: micro-batch an accumulation pass and checkpointing."""

    micro_batch: int
    accumulate: int
    checkpointing: bool
    share: float
    """Of the blocks, checkpointed where `checkpointing`."""
    memory: Memory
    fits: bool
    prediction: Prediction
    """Of the whole step on one GPU, its accumulation passes and communication included."""
    wire_seconds: float
    exposed_seconds: float

    def images_per_second(self, gpus: int) -> float:
        """Predicted, over all GPUs."""
        return gpus * self.prediction.images_per_second

    @property
    def flags(self) -> str:
        """What tells `eva-fast pretrain` to do so."""
        words = [f"--accumulate {self.accumulate}"]
        if self.checkpointing:
            words.append("--grad-checkpointing")
            if self.share != 1:
                words.append(f"--grad-checkpointing-share {self.share:g}")
        return " ".join(words)

    def to_dict(self, gpus: int) -> dict[str, Any]:
        """Plain values."""
        return {
            "flags": self.flags,
            "micro_batch": self.micro_batch,
            "accumulate": self.accumulate,
            "grad_checkpointing": self.checkpointing,
            "fits": self.fits,
            "memory_bytes": {**self.memory.by_kind(), "total": self.memory.total},
            "predicted_images_per_second": self.images_per_second(gpus),
            "predicted_step_seconds": self.prediction.seconds,
            "predicted_mfu": self.prediction.mfu,
            "predicted_wire_seconds": self.wire_seconds,
            "predicted_exposed_seconds": self.exposed_seconds,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What `plan` found; printed it is tables. `asked` is the run as its options have it, `best` the
    quickest option that fits, None when none does."""

    model: str
    objective: str
    teacher: str
    sizes: Sizes
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
    asked: Option
    best: Option | None

    @property
    def days(self) -> float | None:
        """Predicted days for all epochs of the best option; None when nothing fits."""
        return None if self.best is None else self.days_of(self.best)

    def days_of(self, option: Option) -> float:
        """Predicted days for all epochs."""
        return self.epochs * self.images / option.images_per_second(self.gpus) / 86400

    def __str__(self) -> str:
        from eva_fast.planning.tables import to_text

        return to_text(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, grouped as counted, predicted and assumed."""
        best = self.best
        return {
            "model": self.model,
            "objective": self.objective,
            "teacher": self.teacher,
            "sizes": asdict(self.sizes),
            "device": self.device.title,
            "gpus": self.gpus,
            "batch_size": self.batch,
            "precision": self.precision,
            "formulation": self.formulation,
            "sharding": self.sharding,
            "fits": best is not None,
            "counted": {"parameters": self.count.parameters, **self.count.summary()},
            "predicted": None
            if best is None
            else {
                "images_per_second": best.images_per_second(self.gpus),
                "days": self.days,
                "epochs": self.epochs,
                "images_per_epoch": self.images,
                **best.prediction.summary(),
            },
            "asked": self.asked.to_dict(self.gpus),
            "best": None if best is None else best.to_dict(self.gpus),
            "options": [o.to_dict(self.gpus) for o in self.options],
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
            },
        }
