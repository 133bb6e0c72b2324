"""From the options of a run to what it is made of: device, sizes, samples, length.

What cannot work on this machine or does not fit together is refused here, before anything is
loaded or written.
"""

import os
from typing import Any

import torch

from eva_fast.config import BUILTIN_EPOCHS, EVA_EPOCHS, Config
from eva_fast.device import choose_device
from eva_fast.errors import UsageError
from eva_fast.model import ModelSizes, sizes_of
from eva_fast.ops.dispatch import usable
from eva_fast.train.telemetry import require_tensorboard

SIZE_OPTIONS = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_hidden")


def run_length(config: Config, batches_per_epoch: int) -> tuple[int, int]:
    """(steps, warm-up steps) of a run: `steps`, else `epochs`, else EVA-01's 150 epochs (4 on the
    built-in drawings, a few minutes); the warm-up is at most a tenth of it."""
    optim = config.optim
    default = BUILTIN_EPOCHS if config.data.data == "builtin" else EVA_EPOCHS
    epochs = optim.epochs if optim.epochs is not None else default
    total = optim.steps or max(1, round(epochs * batches_per_epoch))
    return total, min(round(optim.warmup_epochs * batches_per_epoch), total // 10)


def student_sizes(config: Config) -> ModelSizes:
    """Sizes by name and option; `predict_dim` is the preset's, the teacher is not known yet."""
    options = {name: getattr(config.model, name) for name in SIZE_OPTIONS}
    return sizes_of(config.model.model, **options)


def device_and_dtype(config: Config) -> tuple[torch.device, torch.dtype]:
    """Where the run computes, and in what the student's blocks do."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "a run is one process and one device; started by torchrun with several, the processes "
            "would write over each other. Start it without torchrun"
        )
    device = choose_device(config.run.device)
    precision = config.run.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return device, {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def check_run(config: Config, device: torch.device) -> None:
    """ValueError for what the run asks for and cannot have here: kernels, a decoder, a library, a
    folder to go on in."""
    if config.run.resume == "auto" and config.run.out is None:
        raise UsageError("resume='auto' needs out=, the folder of the run to go on with")
    if config.data.decode == "gpu" and device.type != "cuda":
        raise UsageError(f"decode='gpu' needs an NVIDIA GPU, and the run is on {device}")
    kernels = config.run.kernels
    if kernels != "auto" and not usable(kernels, device.type):
        needs = {"native": "a CPU and the built C++ library", "triton": "an NVIDIA GPU"}[kernels]
        raise UsageError(
            f"kernels={kernels!r} needs {needs}, and the run is on {device}; 'auto' and 'torch' "
            "run everywhere, `eva-fast doctor` shows what is installed"
        )
    if config.run.track:
        require_tensorboard()


def check_teacher(config: Config, teacher: Any, grid: tuple[int, int]) -> None:
    """ValueError for a teacher module that cannot teach this student."""
    if not hasattr(teacher, "dim"):
        raise UsageError(
            "a teacher module needs `dim`, its feature width, and to be called as "
            "teacher(images, mask=None) -> [B,N,dim] or [masked rows,dim]"
        )
    if config.teacher.whiten and not hasattr(teacher, "calibrate"):
        raise UsageError("whiten=True needs a teacher of load_teacher, or one with `calibrate`")
    own = getattr(teacher, "grid", grid)
    if tuple(own) != grid:
        raise UsageError(
            f"the teacher's patches are a {own[0]}x{own[1]} grid, the student's {grid[0]}x{grid[1]}: "
            f"load_teacher(..., grid={grid}) makes one that fits"
        )


def loader_workers(config: Config, device: torch.device) -> int:
    """Decoding processes: on a GPU all cores but one, at most 16; a student on the CPU takes tens of
    times longer than decoding its images, so an eighth of the cores is plenty."""
    if config.data.workers is not None:
        return config.data.workers
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if device.type == "cuda":
        return min(max(1, cores - 1), 16)
    return max(1, cores // 8) if cores > 1 else 0


def sample_options(config: Config, sizes: ModelSizes) -> dict[str, Any]:
    """What a sample looks like: the same for training, calibration and pictures."""
    data, patches = config.data, sizes.num_patches
    count, block = data.mask_count, data.mask_min_block
    count = max(1, round(patches * 105 / 256)) if count is None else count
    block = max(1, round(patches / 16)) if block is None else block
    if not 0 < count < patches:
        raise UsageError(f"mask_count must be between 1 and {patches - 1} here, got {count}")
    if not 0 < block <= patches:
        raise UsageError(f"mask_min_block must be between 1 and {patches} here, got {block}")
    return dict(
        image_size=sizes.img_size,
        patch_size=sizes.patch_size,
        mask_count=count,
        min_block=block,
        seed=config.run.seed,
        scale=data.crop_scale,
        ratio=data.crop_ratio,
        flip=data.flip,
        max_bad_fraction=data.max_bad_share,
    )
