"""`pretrain()`: the whole recipe of EVA pre-training, top to bottom.

Heavy imports are inside the functions: importing eva_fast and wrong options cost no time.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eva_fast.config import BUILTIN_EPOCHS, EVA_EPOCHS, Config

if TYPE_CHECKING:
    import torch
    from torch import nn


log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainResult:
    """What a run leaves behind."""

    out: Path
    """The run's folder."""
    checkpoint: Path
    """The newest checkpoint, from which `resume='auto'` goes on."""
    weights: Path
    """`model.safetensors`, official naming."""
    picture: Path
    """PNG of images, masks, teacher features and predictions."""
    metrics: dict[str, Any]
    """The last line of `metrics.jsonl`; `first_loss` is the loss of the first line."""
    model: "nn.Module"
    """The trained student, in evaluation mode."""
    stopped_by: str | None = None
    """Name of the signal that ended the run early, or None."""


def pretrain(
    data: Any = "builtin",
    model: str = "eva_ti_patch16_96",
    teacher: Any = "hog",
    out: Path | str | None = None,
    **options: Any,
) -> PretrainResult:
    """Pre-trains a student to predict a frozen teacher's features of masked patches (EVA, CVPR 2023).

    Args:
        data: "builtin", a folder, folders with weights, a text file of paths, tar shards, or a
            map-style dataset (`eva_fast.data.open_source` has the details).
        model: name of the student, for example "eva_g_patch14_224".
        teacher: "hog", a CLIP file or folder, a name such as "openai/ViT-L-14", or a teacher module
            (`eva_fast.load_teacher`).
        out: folder of the run; by default runs/MODEL-TIME.
        options: any field of the classes in `eva_fast.config`: sizes, `batch_size`, `steps`, `lr`, ...

    Returns:
        PretrainResult with paths, last metrics and the trained model.

    Raises:
        ValueError, FileNotFoundError: a wrong option, path or file; before training where possible.
        RuntimeError: too many unreadable images, a worker died, or too many steps in a row were not
            finite (`NonFiniteError`); the run can be resumed.
    """
    named = {"data": data, "model": model, "teacher": teacher, "out": out}
    return run(Config.from_options({**named, **options}))


def run(config: Config) -> PretrainResult:
    """`pretrain` for a ready configuration."""
    import torch

    from eva_fast.data import build_loader, open_source
    from eva_fast.model import create_model
    from eva_fast.model.export import load_weights, save_weights
    from eva_fast.model.fused import keep_copies
    from eva_fast.teachers import load_teacher
    from eva_fast.train import Plan, Session, checkpoint, make_optimizer, train
    from eva_fast.train.examples import Examples
    from eva_fast.train.folder import last_metrics, open_folder, write_header
    from eva_fast.train.guard import Guard
    from eva_fast.train.kernels import settle_kernels
    from eva_fast.train.optimizer import Ema
    from eva_fast.train.telemetry import Telemetry

    device, compute_dtype = _device(config)
    sizes = _sizes(config)
    source = open_source(config.data.data)
    teacher = config.teacher.teacher
    if not isinstance(teacher, torch.nn.Module):
        teacher = load_teacher(
            teacher, grid=sizes.grid, device=str(device), whiten=config.teacher.whiten,
            dtype=None if compute_dtype == torch.float32 else compute_dtype,
        )  # fmt: skip
    elif config.teacher.whiten and not hasattr(teacher, "calibrate"):
        raise ValueError("whiten=True needs a teacher of load_teacher, or one with `calibrate`")
    elif not hasattr(teacher, "dim"):
        raise ValueError(
            "a teacher module needs `dim`, its feature width, and to be called as "
            "teacher(images, mask=None) -> [B,N,dim] or [masked rows,dim]"
        )

    out, resume_from = open_folder(config)
    checkpoints = out / "checkpoints"
    torch.manual_seed(config.run.seed)
    student = create_model(
        config.model.model,
        **{name: getattr(config.model, name) for name in _SIZE_OPTIONS},
        predict_dim=teacher.dim,
        drop_path=config.model.drop_path,
        compute_dtype=compute_dtype,
        kernels=config.run.kernels,
    ).to(device)
    if config.model.init_from is not None and resume_from is None:
        student.load_official(load_weights(config.model.init_from)[0])

    optim = config.optim
    loader_options = _loader_options(config, sizes)
    loader = build_loader(
        source,
        batch_size=optim.batch_size,
        workers=_workers(config, device),
        bad_images=out / "bad_images.jsonl",
        max_bad_fraction=config.data.max_bad_share,
        device=device,
        decode=config.data.decode,
        **loader_options,
    )
    try:
        total, warmup = run_length(config, loader.batches_per_epoch)
        session = Session(
            model=student,
            teacher=teacher,
            loader=loader,
            optimizer=make_optimizer(
                student,
                optim.lr,
                optim.betas,
                optim.eps,
                optim.weight_decay,
                copies=keep_copies(student, compute_dtype) if student.fused else None,
            ),
            guard=Guard(device, scaled=compute_dtype == torch.float16),
            device=device,
            ema=Ema(student, optim.ema) if optim.ema else None,
        )
        before = resume_from and checkpoint.read_state(resume_from)
        session.kernels = settle_kernels(
            config.run.kernels,
            student,
            session.optimizer,
            device,
            batch=optim.batch_size // optim.accumulate,
            masked=loader_options["mask_count"],
            kept=before["kernels"] if before else None,
        )
        examples = Examples(source, loader_options, device)
        if resume_from is not None:
            session.restore(resume_from)
            log.info("going on from %s, step %d of %d", resume_from, session.step, total)
        elif config.teacher.whiten:
            teacher.calibrate(examples.calibration_images())
        write_header(out, config, student, device)

        plan = Plan(
            total_steps=total,
            warmup_steps=warmup,
            batches_per_epoch=loader.batches_per_epoch,
            checkpoints=checkpoints,
            options=config.options(),
            picture=lambda step: examples.draw(out / "pictures" / f"step_{step:09d}.png", session),
        )
        telemetry = Telemetry(
            out,
            first_step=session.step,
            total=total,
            track=config.run.track,
            progress=config.run.progress,
        )
        try:
            stopped_by = train(session, plan, optim, config.run, telemetry)
        finally:
            telemetry.close()
        examples.draw(out / "picture.png", session)
    finally:
        loader.close()

    student.eval()
    save_weights(student, out / "model.safetensors")
    if session.ema is not None:
        save_weights(student, out / "model_ema.safetensors", session.ema.weights)
    return PretrainResult(
        out=out,
        checkpoint=checkpoint.steps_in(checkpoints)[-1],
        weights=out / "model.safetensors",
        picture=out / "picture.png",
        metrics=last_metrics(out),
        model=student,
        stopped_by=stopped_by,
    )


_SIZE_OPTIONS = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_hidden")


def run_length(config: Config, batches_per_epoch: int) -> tuple[int, int]:
    """(steps, warm-up steps) of a run: `steps`, else `epochs`, else EVA-01's 150 epochs (4 on the
    built-in drawings, a few minutes); the warm-up is at most a tenth of it."""
    optim = config.optim
    default = BUILTIN_EPOCHS if config.data.data == "builtin" else EVA_EPOCHS
    epochs = optim.epochs if optim.epochs is not None else default
    total = optim.steps or max(1, round(epochs * batches_per_epoch))
    return total, min(round(optim.warmup_epochs * batches_per_epoch), total // 10)


def _sizes(config: Config):
    from eva_fast.model import sizes_of

    options = {name: getattr(config.model, name) for name in _SIZE_OPTIONS}
    return sizes_of(config.model.model, **options)


def _device(config: Config) -> "tuple[torch.device, torch.dtype]":
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "a run is one process and one device; started by torchrun with several, the processes "
            "would write over each other. Start it without torchrun"
        )
    name = config.run.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("device='cuda', but torch sees no NVIDIA GPU; use device='cpu' or 'auto'")
    device = torch.device(name)
    precision = config.run.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return device, {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _workers(config: Config, device: "torch.device") -> int:
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


def _loader_options(config: Config, sizes) -> dict[str, Any]:
    """What a sample looks like: the same for training, calibration and pictures."""
    data, patches = config.data, sizes.num_patches
    count = data.mask_count or max(1, round(patches * 105 / 256))
    if not 0 < count < patches:
        raise ValueError(f"mask_count must be between 1 and {patches - 1} here, got {count}")
    return dict(
        image_size=sizes.img_size,
        patch_size=sizes.patch_size,
        mask_count=count,
        min_block=data.mask_min_block or max(1, round(patches / 16)),
        seed=config.run.seed,
        scale=data.crop_scale,
        ratio=data.crop_ratio,
        flip=data.flip,
    )
