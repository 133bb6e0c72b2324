"""`pretrain()`: the whole recipe of EVA pre-training, top to bottom.

Heavy imports are inside the functions: importing eva_fast and wrong options cost no time.
"""

import json
import logging
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from eva_fast.config import BUILTIN_EPOCHS, EVA_EPOCHS, Config

if TYPE_CHECKING:
    import torch
    from torch import nn

    from eva_fast.train.session import Session

log = logging.getLogger(__name__)
# What a run may change when it goes on; anything else would make it another run.
MAY_CHANGE = {
    *("steps", "epochs", "lr", "min_lr", "warmup_lr", "warmup_epochs", "betas", "eps"),
    *("weight_decay", "clip_grad", "workers", "max_bad_share", "out", "resume", "kernels"),
    *("checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "log_every", "picture_every"),
    *("track", "progress", "device", "init_from", "accumulate"),
}


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
    elif not hasattr(teacher, "dim"):
        raise ValueError(
            "a teacher module needs `dim`, its feature width, and to be called as "
            "teacher(images, mask=None) -> [B,N,dim] or [masked rows,dim]"
        )

    out, resume_from = _open_folder(config)
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
        examples = _Examples(source, loader_options, device)
        if resume_from is not None:
            session.restore(resume_from)
            log.info("going on from %s, step %d of %d", resume_from, session.step, total)
        elif config.teacher.whiten:
            teacher.calibrate(examples.calibration_images())
        _write_header(out, config, student, device)

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
        metrics=_last_metrics(out),
        model=student,
        stopped_by=stopped_by,
    )


_SIZE_OPTIONS = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_hidden")


def run_length(config: Config, batches_per_epoch: int) -> tuple[int, int]:
    """(steps, warm-up steps) of a run: `steps`, else `epochs`, else EVA-01's 150 epochs (6 on the
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


def _open_folder(config: Config) -> tuple[Path, Path | None]:
    """(the run's folder, the checkpoint to go on from or None)."""
    from eva_fast.train import checkpoint

    out = config.run.out
    if out is None:
        name = str(config.model.model).replace("/", "-")
        out = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "pictures").mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to out={out}: {error}") from None
    found = checkpoint.newest(out / "checkpoints")
    if config.run.resume == "never":
        if found is not None or (out / "metrics.jsonl").exists():
            raise ValueError(
                f"{out} already holds a run; resume='auto' goes on with it, another out= starts anew"
            )
        return out, None
    if found is not None:
        before, now = checkpoint.read_state(found)["options"], config.options()
        other = [k for k in now if k not in MAY_CHANGE and before.get(k, now[k]) != now[k]]
        if other:
            changes = ", ".join(f"{k}: {before[k]!r} -> {now[k]!r}" for k in other)
            raise ValueError(
                f"{out} was started with other options ({changes}); give the same ones to go on "
                "with it, or another out="
            )
    return out, found


def _write_header(out: Path, config: Config, model: "nn.Module", device: "torch.device") -> None:
    """The record of what runs, before it runs: config.yaml and environment.json."""
    import numpy
    import torch

    import eva_fast

    (out / "config.yaml").write_text(yaml.safe_dump(config.options(), sort_keys=False))
    environment = {
        "eva_fast": eva_fast.__version__,
        "git": _git_sha(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    (out / "environment.json").write_text(json.dumps(environment, indent=1) + "\n")
    log.info("%s", "  ".join(f"{k} {v}" for k, v in environment.items()))


def _git_sha() -> str | None:
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _last_metrics(out: Path) -> dict[str, Any]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    if not lines:
        return {}
    return {"first_loss": json.loads(lines[0])["loss"], **json.loads(lines[-1])}


class _Examples:
    """The same few training images each time, for pictures and for the teacher's calibration."""

    COUNT = 8
    CALIBRATION_BATCHES = 8

    def __init__(self, source: Any, loader_options: dict[str, Any], device: "torch.device"):
        self.source, self.options, self.device = source, loader_options, device
        self._batch: Any = None

    def _batches(self, size: int):
        from eva_fast.data import build_loader

        loader = build_loader(
            self.source, batch_size=min(size, len(self.source)), workers=0, device=self.device,
            **self.options,
        )  # fmt: skip
        try:
            yield from loader
        finally:
            loader.close()

    def calibration_images(self):
        """Batches of training crops, uint8 [B,3,S,S]."""
        batches = self._batches(64)
        for _ in range(self.CALIBRATION_BATCHES):
            yield next(batches).images
        batches.close()

    def draw(self, path: Path, session: "Session") -> None:
        """Images, masks, teacher features and the student's predictions as PCA colours."""
        import torch

        from eva_fast.train.picture import save_picture

        if self._batch is None:
            batches = self._batches(self.COUNT)
            self._batch = next(batches)
            batches.close()
        images, mask, student = self._batch.images, self._batch.mask, session.model
        was_training = student.training
        student.eval()
        with torch.no_grad():
            features = student.forward_features(images, mask)[:, 1:]
            prediction = student.lm_head(features.to(student.lm_head.weight.dtype))
            target = session.teacher(images)
        student.train(was_training)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_picture(path, images, mask, target, prediction, student.grid)
