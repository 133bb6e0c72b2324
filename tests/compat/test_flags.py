"""The table of flags against the official script, and that no flag is passed over in silence."""

import re

import pytest

from eva_fast.compat import flags
from eva_fast.compat.official import FLAGS
from eva_fast.compat.translate import options_of
from eva_fast.config import Config
from eva_fast.errors import UsageError
from tests.compat.docs import PAGE, command, with_table

# Of the official `get_args`: each flag that takes a value, with its default.
VALUES = {
    "batch_size": 32, "epochs": 150, "update_freq": 1, "save_ckpt_freq": 1, "teacher_type": "clip",
    "teacher_model_path": None, "clip_model": "ViT-L/14",
    "cache_dir": "/sharefs/yxf/weights/clip/large", "model": "eva_g_patch14_224",
    "layer_scale_init_value": 0, "num_mask_patches": 105, "max_mask_patches_per_block": None,
    "min_mask_patches_per_block": 16, "input_size": 224, "second_input_size": 224,
    "drop_path": 0.1, "opt": "adamw", "opt_eps": 1e-6, "opt_betas": [0.9, 0.98], "clip_grad": 3.0,
    "momentum": 0.9, "weight_decay": 0.05, "lr": 1e-3, "warmup_lr": 1e-6, "min_lr": 1e-5,
    "lr_sched_type": "cos", "warmup_epochs": 2, "warmup_steps": -1, "color_jitter": 0.0,
    "train_interpolation": "bicubic", "second_interpolation": "bicubic", "crop_scale": [0.2, 1.0],
    "crop_ratio": [3.0 / 4.0, 4.0 / 3.0], "mixup": 0, "cutmix": 0, "cutmix_minmax": None,
    "mixup_prob": 1.0, "mixup_switch_prob": 0.5, "mixup_mode": "batch", "finetune": "",
    "model_key": "model|module", "model_prefix": "", "data_set": "image_folder",
    "val_data_set": "IMNET", "crop_pct": None, "data_path": "/path/to/merge4pt",
    "val_data_path": "/path/to/ImageNet-1K", "output_dir": "", "log_dir": None, "device": "cuda",
    "seed": 88, "resume": "", "start_epoch": 0, "num_workers": 10, "world_size": 1,
    "local_rank": -1, "dist_url": "env://", "zero_stage": 1,
}  # fmt: skip
OFF = {
    "mae", "grad_ckpt", "stop_grad_conv1", "rel_pos_bias", "decoupled_rel_pos_bias", "model_ema",
    "imagenet_default_mean_and_std", "bf16", "rand", "auto_resume_iter", "enable_deepspeed",
}  # fmt: skip
ON = {
    "abs_pos_emb": "disable_abs_pos_emb",
    "auto_resume": "no_auto_resume",
    "pin_mem": "no_pin_mem",
}
# `deepspeed.add_config_arguments`
DEEPSPEED = {
    "deepspeed": False, "deepspeed_config": None, "deepscale": False, "deepscale_config": None,
}  # fmt: skip

# Another value for each flag, and what must be there beside it for it to mean something.
OTHER = {
    "batch_size": "16", "epochs": "90", "update_freq": "2", "save_ckpt_freq": "5",
    "teacher_type": "dino", "teacher_model_path": "x.pt", "clip_model": "ViT-B/16",
    "cache_dir": "elsewhere", "model": "eva_b_patch14_224", "layer_scale_init_value": "0.1",
    "num_mask_patches": "99", "max_mask_patches_per_block": "50", "min_mask_patches_per_block": "4",
    "input_size": "196", "second_input_size": "196", "drop_path": "0.3", "opt": "lamb",
    "opt_eps": "1e-8", "opt_betas": "0.9 0.95", "clip_grad": "1", "momentum": "0.8",
    "weight_decay": "0.1", "lr": "3e-4", "warmup_lr": "0", "min_lr": "0", "lr_sched_type": "linear",
    "warmup_epochs": "5", "warmup_steps": "77", "color_jitter": "0.4",
    "train_interpolation": "random", "second_interpolation": "lanczos", "crop_scale": "0.4 0.9",
    "crop_ratio": "0.5 2", "mixup": "0.2", "cutmix": "1", "cutmix_minmax": "0.2 0.8",
    "mixup_prob": "0.5", "mixup_switch_prob": "0.1", "mixup_mode": "elem", "finetune": "x.pt",
    "model_key": "ema", "model_prefix": "visual.", "data_set": "CIFAR", "val_data_set": "CIFAR",
    "crop_pct": "0.9", "data_path": "photos", "val_data_path": "val", "output_dir": "there",
    "log_dir": "there/tb", "device": "cpu", "seed": "3", "resume": "checkpoint-3.pth",
    "start_epoch": "4", "num_workers": "4", "world_size": "8", "dist_url": "tcp://x:1",
    "deepspeed_config": "ds.json", "deepscale_config": "ds.json",
}  # fmt: skip
PLACES = {"cache_dir", "val_data_path", "local_rank"}
ELSEWHERE = {"rand", "local_rank"}
"""Not of the options: the seed is drawn, and the launcher's variables set, by the program itself."""


def read(*words):
    return flags.read(FLAGS, words)


def options(said, processes=8):
    found = options_of(said, processes, images=1_000_000)
    Config.from_options(found)
    return found


def test_it_is_the_official_list():
    expected = {**VALUES, **dict.fromkeys(OFF, False), **dict.fromkeys(ON, True), **DEEPSPEED}
    assert {each.name: each.default for each in FLAGS} == expected
    assert len(FLAGS) == len(expected)
    switches = {each.name for each in FLAGS if each.kind is None}
    assert switches == OFF | ON.keys() | {"deepspeed", "deepscale"}
    negative = {each.name: each.off for each in FLAGS if each.off}
    assert negative == {**ON, "decoupled_rel_pos_bias": "disable_decoupled_rel_pos_bias"}
    assert all(each.rules for each in FLAGS)


def test_every_default_is_silent():
    """Also where it is typed; only what names a place is no one's default."""
    words = []
    for each in FLAGS:
        if each.kind is None:
            words += [f"--{each.name}"] * bool(each.default) + [f"--{each.off}"] * (
                each.off is not None and not each.default
            )
        elif each.default not in (None, "") and each.name not in PLACES:
            words += each.shown(each.default).split()
    said = read(*words, "--output_dir", "x")
    assert flags.warnings(FLAGS, said) == []
    plain = {**options(read("--output_dir", "x")), "device": "cuda"}  # typed: no other will do
    assert options(said) == plain


@pytest.mark.parametrize("each", FLAGS, ids=lambda each: each.name)
def test_no_flag_is_passed_over(each):
    """Another value changes the options of the run, or is refused or warned about by the flag's name."""
    if each.name in ELSEWHERE or each.name == "zero_stage":
        return
    word = OTHER[each.name] if each.kind else ""
    typed = f"--{each.off}" if each.kind is None and each.default else f"--{each.name} {word}"
    model = ["--model", "mae_vit_base_patch16_dec512d8b"] * (each.name == "mae")
    base = [] if each.name == "output_dir" else ["--output_dir", "x"]
    before = read(*base)
    kinds = {rule.kind for rule in each.rules}
    if "refused" in kinds:
        try:
            after = read(*base, *model, *typed.split())
        except UsageError as error:
            assert re.search(rf"^  --({each.name}|{each.off})( |:)", str(error), re.MULTILINE)
            return
    else:
        after = read(*base, *model, *typed.split())
    said = [line for line in flags.warnings(FLAGS, after) if line.startswith(typed.split()[0])]
    assert options(after) != options(before) or said, each.name


def test_values_reach_the_configuration():
    words = [f"--{name} {value}" for name, value in OTHER.items() if name in (
        "batch_size", "epochs", "update_freq", "save_ckpt_freq", "clip_model", "model",
        "num_mask_patches", "min_mask_patches_per_block", "max_mask_patches_per_block", "color_jitter",
        "train_interpolation", "second_interpolation", "input_size", "drop_path", "opt_eps",
        "opt_betas", "clip_grad", "weight_decay", "lr", "min_lr", "warmup_epochs", "crop_scale",
        "crop_ratio", "finetune", "data_path", "output_dir", "log_dir", "device", "seed",
        "num_workers",
    )]  # fmt: skip
    typed = [*" ".join(words).split(), "--bf16", "--grad_ckpt", "--auto_resume_iter"]
    config = Config.from_options(options_of(read(*typed), 4, images=1300))  # 10 steps of 128
    found = config.options()
    expected = {
        "batch_size": 128, "accumulate": 2, "epochs": 90, "checkpoint_every": 50, "log_every": 10,
        "teacher": "openai/ViT-B-16", "model": "eva_b_patch14_224", "img_size": 196,
        "mask_count": 99, "mask_min_block": 4, "mask_max_block": 50, "color_jitter": 0.4,
        "interpolation": "random", "teacher_interpolation": "lanczos", "drop_path": 0.3, "eps": 1e-8,
        "betas": [0.9, 0.95],
        "clip_grad": 1.0, "weight_decay": 0.1, "lr": 3e-4, "min_lr": 0.0, "warmup_lr": 0.0,
        "warmup_steps": 50, "crop_scale": [0.4, 0.9], "crop_ratio": [0.5, 2.0],
        "init_from": "x.pt", "data": "photos", "out": "there", "track": "tensorboard", "device": "cpu",
        "seed": 3, "workers": 4, "precision": "bf16", "grad_checkpointing": True, "rewinds": 2,
        "sharding": "replicate", "resume": "auto", "objective": "eva",
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


def test_refusals_come_together():
    with pytest.raises(UsageError) as refused:
        read("--mixup", "0.8", "--disable_abs_pos_emb", "--start_epoch", "3", "--lr", "1")
    lines = str(refused.value).splitlines()
    assert len(lines) == 4
    assert [re.match(r" +(--\w+)", line)[1] for line in lines[1:]] == [
        "--disable_abs_pos_emb",
        "--mixup",
        "--start_epoch",
    ]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--learning_rate", "1"], "unrecognized arguments: --learning_rate"),
        (["--lr", "fast"], "argument --lr: invalid float value: 'fast'"),
        (["--data_set", "COCO"], "argument --data_set: invalid choice"),
        (["--opt_betas", "0.9"], "--opt_betas 0.9: it takes two numbers"),
        (["--clip_model", "RN50"], "--clip_model RN50: .* CLIP's ResNets give no features"),
        (["--finetune", "https://x/eva.pt"], "--finetune https://x/eva.pt: .* download it"),
        (["--resume", "x", "--no_auto_resume"], "--resume x: it lies outside"),
        (["--output_dir", "r", "--resume", "r", "--no_auto_resume"], "not to go on"),
        (["--zero_stage", "4", "--enable_deepspeed"], "--zero_stage 4: it is 0 to 3"),
    ],
)
def test_what_is_wrong_is_one_error(words, message):
    with pytest.raises(UsageError, match=message):
        read(*words)


def test_only_in_the_folder_of_the_run():
    said = read("--output_dir", "runs/a", "--resume", "runs/a/checkpoint-3.pth")
    assert options(said)["resume"] == "auto" and flags.warnings(FLAGS, said) == []
    with pytest.raises(UsageError, match="--resume runs/ab/x: it lies outside"):
        read("--output_dir", "runs/a", "--resume", "runs/ab/x")


def test_sharding():
    for stage, expected in (("0", "replicate"), ("1", "zero2"), ("2", "zero2"), ("3", "full")):
        said = read("--zero_stage", stage, "--enable_deepspeed", "--output_dir", "x")
        assert options(said)["sharding"] == expected and flags.warnings(FLAGS, said) == []
    (line,) = flags.warnings(FLAGS, read("--zero_stage", "0", "--output_dir", "x"))
    assert line.startswith("--zero_stage 0: without `--enable_deepspeed`")


@pytest.mark.parametrize(
    "train, second, student, teacher, warned",
    [
        ("bicubic", "bicubic", None, None, []),
        ("bilinear", "bilinear", "bilinear", None, []),
        ("random", "bicubic", "random", "bicubic", []),
        ("bicubic", "random", None, "bilinear", ["second"]),
        ("nearest", "box", "bilinear", None, ["train", "second"]),
        ("lanczos", "hamming", "lanczos", "hamming", []),
    ],
)
def test_filters_are_what_the_official_script_makes_of_their_names(
    train, second, student, teacher, warned
):
    said = read(
        "--output_dir", "x", "--train_interpolation", train, "--second_interpolation", second
    )
    found = options(said)
    assert (found["interpolation"], found["teacher_interpolation"]) == (student, teacher)
    lines = flags.warnings(FLAGS, said)
    assert [line.split()[0] for line in lines] == [f"--{name}_interpolation" for name in warned]


def test_what_the_students_images_are_normalised_with():
    assert options(read())["normalize"] is None
    assert options(read("--imagenet_default_mean_and_std"))["normalize"] == "imagenet"
    mae = ["--mae", "--model", "mae_vit_base_patch16_dec512d8b", "--output_dir", "x"]
    assert options(read(*mae, "--imagenet_default_mean_and_std"))["normalize"] == "imagenet"


def test_a_tenth_of_the_gradient():
    assert options(read("--stop_grad_conv1"))["patch_embed_grad"] == 0.1
    mae = ["--mae", "--model", "mae_vit_base_patch16_dec512d8b", "--output_dir", "x"]
    said = read(*mae, "--stop_grad_conv1")
    assert options(said).get("patch_embed_grad", 1.0) == 1.0
    (line,) = flags.warnings(FLAGS, said)
    assert line.startswith("--stop_grad_conv1: with `--mae` the official script has none")


def test_what_students_may_have():
    assert options(read("--layer_scale_init_value", "1e-5"))["layer_scale"] == 1e-5
    assert options(read("--layer_scale_init_value", "-1"))["layer_scale"] is None
    assert options(read("--rel_pos_bias"))["relative_bias"] == "shared"
    assert options(read("--decoupled_rel_pos_bias"))["relative_bias"] == "decoupled"
    off = read("--decoupled_rel_pos_bias", "--disable_decoupled_rel_pos_bias")
    assert options(off)["relative_bias"] == options(read())["relative_bias"] == "none"
    with pytest.raises(UsageError, match="--rel_pos_bias: one of the two"):
        read("--rel_pos_bias", "--decoupled_rel_pos_bias")
    mae = ["--mae", "--model", "mae_vit_base_patch16_dec512d8b", "--output_dir", "x"]
    typed = ["--rel_pos_bias", "--layer_scale_init_value", "0.1"]
    assert options(read(*mae, *typed)) == options(read(*mae))
    lines = flags.warnings(FLAGS, read(*mae, *typed))
    assert {line.split()[0].rstrip(":") for line in lines} == {typed[0], typed[1]}


def test_what_mae_does_not_read():
    words = ["--mae", "--model", "mae_vit_large_patch16_dec512d4b", "--output_dir", "x"]
    assert flags.warnings(FLAGS, read(*words)) == []
    typed = ["--num_mask_patches", "105", "--drop_path", "0.1", "--min_mask_patches_per_block", "9"]
    typed += ["--max_mask_patches_per_block", "60"]
    lines = flags.warnings(FLAGS, read(*words, *typed))
    assert {line.split()[0] for line in lines} == set(typed[::2])


def test_abbreviations_are_taken_as_the_official_parser_takes_them():
    assert read("--num_work", "3").num_workers == 3
    assert read("--local-rank", "1").local_rank == read("--local_rank=1").local_rank == 1


def test_the_page_shows_the_table():
    text = PAGE.read_text()
    assert with_table(text) == text, "python -m tests.compat.docs writes it"


def test_the_readmes_command_line_is_taken():
    """Two things are said: nothing is validated, and where TensorBoard's files are. (Its folder of CLIP
    is none here.)"""
    said = read(*command())
    lines = flags.warnings(FLAGS, said)
    assert [line.split()[0] for line in lines] == ["--cache_dir", "--val_data_path", "--log_dir"]
