"""The official flags as options of `eva_fast.pretrain`."""

from typing import Any

from eva_fast.compat.flags import Said
from eva_fast.compat.official import FLAGS
from eva_fast.compat.teacher import teacher_of
from eva_fast.data.decode.filters import CHOICES, NUMBERS
from eva_fast.errors import UsageError
from eva_fast.options import require

# MAE's students of the official code: eva_fast's name and the depth of the decoder. The second has
# patches of 14 whatever its name says.
MAE = {
    "mae_vit_base_patch16_dec512d8b": ("eva_b_patch16_224", 8),
    "mae_vit_large_patch16_dec512d4b": ("eva_l_patch14_224", 4),
    "mae_vit_huge_patch14_dec512d8b": ("eva_h_patch14_224", 8),
}
SHARDINGS = {0: "replicate", 1: "zero2", 2: "zero2", 3: "full"}
LOG_EVERY = 10


def batch_of(said: Said, processes: int) -> int:
    """Images a step over all processes. UsageError where there are none."""
    for name in ("batch_size", "update_freq"):
        require(getattr(said, name) >= 1, f"--{name} must be at least 1, got {getattr(said, name)}")
    return said.batch_size * processes * said.update_freq


def epoch_steps(said: Said, processes: int, images: int) -> int:
    """Steps an epoch; of fewer images than a batch eva_fast makes one step, the official script none."""
    return max(1, images // batch_of(said, processes))


def device_of(said: Said) -> str:
    """`device=`: nobody has to say that there is no GPU."""
    return said.device if "device" in said.given else "auto"


def options_of(said: Said, processes: int, images: int, device: str = "cuda") -> dict[str, Any]:
    """All options that the flags say, seed by chance aside (`--rand`).

    processes: of the run. images: how many lie in `--data_path`. device: the type of what the run is on.
    UsageError for what does not fit together."""
    passed = {
        rule.says: getattr(said, each.name)
        for each in FLAGS
        for rule in each.rules
        if rule.kind == "option"
    }
    steps = epoch_steps(said, processes, images)
    auto = said.auto_resume and bool(said.output_dir)
    return {
        **passed,
        **_objective(said),
        **_crops(said),
        "normalize": "imagenet" if said.imagenet_default_mean_and_std else None,
        "betas": tuple(said.opt_betas),
        "crop_scale": tuple(said.crop_scale),
        "crop_ratio": tuple(said.crop_ratio),
        "teacher": teacher_of(said.clip_model, said.cache_dir),
        "batch_size": batch_of(said, processes),
        "warmup_lr": 0.0,
        "warmup_steps": _warmup(said, steps),
        "init_from": said.finetune or None,
        "precision": "fp32" if device == "cpu" else "bf16" if said.bf16 else "fp16",
        "sharding": SHARDINGS[said.zero_stage] if said.enable_deepspeed else "replicate",
        "device": device_of(said),
        "seed": said.seed,
        "out": said.output_dir or None,
        "track": "tensorboard" if said.log_dir else "none",
        "resume": "auto" if auto else "never",
        "spike": 0.0,
        "rewinds": 2 if said.auto_resume_iter else 0,
        "checkpoint_every": said.save_ckpt_freq * steps,
        "log_every": min(LOG_EVERY, steps),
    }


def _objective(said: Said) -> dict[str, Any]:
    if not said.mae:
        return {
            "objective": "eva", "model": said.model, "drop_path": said.drop_path,
            "mask_count": said.num_mask_patches, "mask_min_block": said.min_mask_patches_per_block,
            "mask_max_block": said.max_mask_patches_per_block,
            "patch_embed_grad": 0.1 if said.stop_grad_conv1 else 1.0,
            "layer_scale": said.layer_scale_init_value if said.layer_scale_init_value > 0 else None,
            "relative_bias": "shared" if said.rel_pos_bias
            else "decoupled" if said.decoupled_rel_pos_bias else "none",
        }  # fmt: skip
    if said.model not in MAE:
        raise UsageError(f"--model {said.model}: with --mae it is one of {', '.join(MAE)}")
    model, depth = MAE[said.model]
    return {
        "objective": "mae", "model": model, "drop_path": 0.0,
        "decoder_dim": 512, "decoder_depth": depth, "decoder_heads": 16,
    }  # fmt: skip


def _crops(said: Said) -> dict[str, Any]:
    """Colours and filters; of filters that it does not know the official script makes `bilinear`, and of
    `random` as the teacher's too."""
    student = said.train_interpolation if said.train_interpolation in CHOICES else "bilinear"
    teacher = said.second_interpolation if said.second_interpolation in NUMBERS else "bilinear"
    return {
        "color_jitter": said.color_jitter if said.color_jitter > 0 else None,
        "interpolation": None if student == "bicubic" else student,
        "teacher_interpolation": None if teacher == student else teacher,
    }


def _warmup(said: Said, steps: int) -> int:
    """Steps of warm-up, which the official schedule takes whole."""
    warmup = said.warmup_steps if said.warmup_steps > 0 else said.warmup_epochs * steps
    if warmup > said.epochs * steps:
        raise UsageError(
            f"the warm-up of {warmup} steps is longer than the run of {said.epochs} epochs x {steps} "
            "steps: lower --warmup_epochs or --warmup_steps"
        )
    return warmup
