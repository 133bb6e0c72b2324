"""Options of the optimiser and its schedule, of a run as a whole, and of probes in it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eva_fast.options import NAMES, option, require, user_path
from eva_fast.train.loggers import names_of

# Length of a run that says neither steps nor epochs.
EVA_EPOCHS = 150
BUILTIN_EPOCHS = 5
PROBES = ("knn", "linear")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Optimiser and schedule."""

    batch_size: int = 64
    """Images a step over all devices (EVA-01: 4096)."""
    accumulate: int = option(1, resume=True)
    """Split a step into this many forward and backward passes to save memory."""
    steps: int | None = option(None, resume=True)
    """Length of the run in steps; wins over epochs."""
    epochs: float | None = option(None, resume=True)
    """Length of the run in passes over the data; by default 150, 5 on the built-in drawings."""
    lr: float = option(1e-3, resume=True)
    """Peak learning rate, as it is used: not scaled by the batch size."""
    min_lr: float = option(1e-5, resume=True)
    """Learning rate at the end of the cosine."""
    warmup_lr: float = option(0.0, resume=True)
    """Learning rate of the first step."""
    warmup_epochs: float = option(2.0, resume=True)
    """Length of the linear warm-up, at most a tenth of the run."""
    warmup_steps: int | None = option(None, resume=True)
    """Length of the linear warm-up in steps, whatever share of the run; wins over warmup_epochs."""
    betas: tuple[float, float] = option((0.9, 0.98), resume=True)
    """AdamW's moment decay rates."""
    eps: float = option(1e-6, resume=True)
    """AdamW's epsilon."""
    weight_decay: float = option(0.05, resume=True)
    """Decay of matrices and the like: not of biases, vectors, and what the model spares."""
    clip_grad: float = option(3.0, resume=True)
    """Largest global gradient norm; 0 turns clipping off."""
    spike: float = option(7.0, resume=True)
    """Skip a step whose loss is so many standard deviations above the mean of the last 128 or so; 0
    never does."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, kept beside them; 0 for none."""

    def __post_init__(self):
        for name in ("batch_size", "accumulate"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1")
        require(
            self.batch_size % self.accumulate == 0,
            f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}",
        )
        require(self.steps is None or self.steps >= 1, f"steps must be at least 1: {self.steps}")
        require(self.epochs is None or self.epochs > 0, f"epochs must be above 0: {self.epochs}")
        rates = ("lr", "min_lr", "warmup_lr", "warmup_epochs", "weight_decay")
        for name in (*rates, "clip_grad", "spike"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, f"{name} must be 0 or more, got {value}")
        require(
            self.warmup_steps is None or self.warmup_steps >= 0,
            f"warmup_steps must be 0 or more, got {self.warmup_steps}",
        )
        require(self.eps > 0, f"eps must be above 0, got {self.eps}")
        require(all(0 <= b < 1 for b in self.betas), f"betas must be in [0, 1), got {self.betas}")
        require(0 <= self.ema < 1, f"ema must be in [0, 1), got {self.ema}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Run."""

    out: Path | None = option(None, resume=True)
    """Folder of the run; by default runs/MODEL-TIME."""
    seed: int = 0
    """Fixes initial values, sample order, crops, masks and dropped paths."""
    resume: Literal["never", "auto"] = option("never", resume=True)
    """auto: go on from the newest whole checkpoint in --out, or start if there is none."""
    checkpoint_every: int | None = option(None, resume=True)
    """A checkpoint at each multiple of so many steps; by default by time alone."""
    checkpoint_minutes: float = option(15.0, resume=True)
    """Minutes between checkpoints; 0 turns it off."""
    keep_checkpoints: int = option(2, resume=True)
    """How many of the newest checkpoints stay."""
    keep_checkpoint_every: int | None = option(None, resume=True)
    """Checkpoints at multiples of so many steps stay for good."""
    log_every: int = option(10, resume=True)
    """Steps between lines in metrics.jsonl; nothing is read from the device in between."""
    picture_every: int | None = option(None, resume=True)
    """Steps between pictures; one is always made at the end."""
    device: str = option("auto", resume=True)
    """cpu, cuda, or auto."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = "auto"
    """Arithmetic of the student's blocks; auto is fp32 on a CPU and bf16 on a GPU. fp8: bf16 with the
    matrix products of the blocks in 8 bits, on NVIDIA GPUs from Hopper on; device="cpu" emulates it."""
    kernels: Literal["auto", "torch", "native", "triton"] = option("auto", resume=True)
    """Fused kernels: auto measures once and takes the faster."""
    graph: Literal["auto", "on", "off"] = option("auto", resume=True)
    """The step as one CUDA graph, which the host never holds up, with the same numbers: auto where it
    is measured to be faster; on is an error where it cannot be."""
    grad_checkpointing: bool = option(False, resume=True)
    """Keep the inputs of the student's blocks alone for the backward pass and compute the rest again
    there: less memory for about a third more arithmetic, the same numbers."""
    grad_checkpointing_share: float = option(1.0, resume=True)
    """Share of the blocks that do so, evenly spread: 0.5 is every second."""
    sharding: Literal["auto", "replicate", "zero2", "full", "hybrid"] = option("auto", resume=True)
    """Of a run of several processes (torchrun): replicate holds all in each; zero2 shards gradients and
    optimiser; full the weights too; hybrid is full within a machine and replicates between machines.
    auto: replicate where all is small, hybrid beyond one machine, else full."""
    teacher_sharding: Literal["replicate", "shard"] = option("replicate", resume=True)
    """The teacher of such a run: in every process, or a share of it in each process of a machine, which
    saves memory and costs a gather of its weights each pass."""
    process_minutes: float = option(10.0, resume=True)
    """Minutes after which a process that does not answer ends the others of its run."""
    rewinds: int = option(2, resume=True)
    """How often a run whose steps are not finite, or spikes, ten times in a row goes back to its last
    checkpoint, and on with fresh data, before it stops."""
    track: NAMES = option("none", resume=True)
    """Where metrics go beside metrics.jsonl: tensorboard, wandb or mlflow, or several with commas."""
    progress: bool = option(True, resume=True)
    """Show a progress bar."""

    def __post_init__(self):
        object.__setattr__(self, "out", user_path(self.out))
        names_of(self.track)
        require(self.log_every >= 1, f"log_every must be at least 1, got {self.log_every}")
        require(
            self.keep_checkpoints >= 1,
            f"keep_checkpoints must be at least 1, got {self.keep_checkpoints}",
        )
        for name in ("checkpoint_every", "keep_checkpoint_every", "picture_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        require(
            self.process_minutes > 0,
            f"process_minutes must be above 0, got {self.process_minutes}",
        )
        require(self.rewinds >= 0, f"rewinds must be 0 or more, got {self.rewinds}")
        require(
            self.checkpoint_minutes >= 0,
            f"checkpoint_minutes must be 0 or more, got {self.checkpoint_minutes}",
        )
        require(
            0 < self.grad_checkpointing_share <= 1,
            "grad_checkpointing_share must be above 0 and at most 1, got "
            f"{self.grad_checkpointing_share}",
        )
        require(
            self.device in ("auto", "cpu") or self.device.split(":")[0] == "cuda",
            f"device must be auto, cpu or cuda, got {self.device!r}; a GPU's name such as h100 is for "
            "`eva-fast plan --hardware`",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """Probes while training."""

    probe_data: Path | None = option(None, resume=True)
    """Images to probe on, "builtin" or as eva-fast eval takes them; scores go to probes.jsonl, the log
    and probes.png. By default no probes."""
    probe_every: int | None = option(None, resume=True)
    """Steps between probes; by default ten a run."""
    probe_with: NAMES = option("knn", resume=True)
    """Which: knn (k nearest neighbours), linear (logistic regression), or both with a comma."""

    def __post_init__(self):
        object.__setattr__(self, "probe_data", user_path(self.probe_data))
        named = {name.strip() for name in self.probe_with.split(",")} - {""}
        require(
            bool(named) and named <= set(PROBES),
            f"probe_with is of {', '.join(PROBES)} with commas, got {self.probe_with!r}",
        )
        require(
            self.probe_every is None or self.probe_every >= 1,
            f"probe_every must be at least 1, got {self.probe_every}",
        )
        require(
            self.probe_every is None or self.probe_data is not None,
            "probe_every needs probe_data, a folder with a folder a class",
        )
