"""`pretrain()`: the whole recipe of EVA pre-training, top to bottom.

Heavy imports are inside the functions: importing eva_fast and wrong options cost no time.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eva_fast.config import Config

if TYPE_CHECKING:
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
    from eva_fast.layers import drop_copies, keep_copies
    from eva_fast.model import create_model
    from eva_fast.model.export import load_weights, save_weights
    from eva_fast.teachers import load_teacher
    from eva_fast.train import Plan, Session, checkpoint, make_optimizer, train
    from eva_fast.train.examples import Examples
    from eva_fast.train.folder import last_metrics, open_folder, write_header
    from eva_fast.train.guard import Guard
    from eva_fast.train.kernels import settle_kernels
    from eva_fast.train.optimizer import Ema
    from eva_fast.train.resolve import (
        SIZE_OPTIONS,
        check_run,
        check_teacher,
        device_and_dtype,
        loader_workers,
        run_length,
        sample_options,
        student_sizes,
    )
    from eva_fast.train.telemetry import Telemetry

    device, compute_dtype = device_and_dtype(config)
    sizes = student_sizes(config)
    loader_options = sample_options(config, sizes)
    check_run(config, device)
    source = open_source(config.data.data)
    teacher = config.teacher.teacher
    if isinstance(teacher, torch.nn.Module):
        check_teacher(config, teacher, sizes.grid)
        teacher = teacher.to(device).eval()
    else:
        teacher = load_teacher(
            teacher, grid=sizes.grid, device=str(device), whiten=config.teacher.whiten,
            dtype=None if compute_dtype == torch.float32 else compute_dtype,
        )  # fmt: skip

    out, resume_from = open_folder(config)
    checkpoints = out / "checkpoints"
    torch.manual_seed(config.run.seed)
    student = create_model(
        config.model.model,
        **{name: getattr(config.model, name) for name in SIZE_OPTIONS},
        predict_dim=teacher.dim,
        drop_path=config.model.drop_path,
        compute_dtype=compute_dtype,
        kernels=config.run.kernels,
    ).to(device)
    if config.model.init_from is not None and resume_from is None:
        student.load_official(load_weights(config.model.init_from)[0])

    optim = config.optim
    loader = build_loader(
        source,
        batch_size=optim.batch_size,
        workers=loader_workers(config, device),
        bad_images=out / "bad_images.jsonl",
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
                copies=keep_copies(student, compute_dtype),
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
    finally:
        loader.close()

    drop_copies(student.eval())
    save_weights(student, out / "model.safetensors")
    if session.ema is not None:
        save_weights(student, out / "model_ema.safetensors", session.ema.weights)
    examples.draw(out / "picture.png", session)
    return PretrainResult(
        out=out,
        checkpoint=checkpoint.steps_in(checkpoints)[-1],
        weights=out / "model.safetensors",
        picture=out / "picture.png",
        metrics=last_metrics(out),
        model=student,
        stopped_by=stopped_by,
    )
