"""Each flag of EVA-01's pre-training script in the order of its own `get_args`."""

import os
from typing import Any

from eva_fast.compat.flags import Flag, Said, becomes, flag, refused, used, warned
from eva_fast.compat.teacher import CLIPS, is_clip, teacher_of
from eva_fast.data.decode.filters import CHOICES, NUMBERS

FUSED = ("adamw", "fusedadamw")
UNREAD = "the official script reads it nowhere either"
WITH_MAE = "with `--mae` the official script has none whatever it says: so it is here"
ONE_BY_ONE = "with `--mae` patches are dropped one by one, as in the official script"
BILINEAR = "the official script takes `bilinear` then: so it is here"
WITH_DEEPSPEED = "with `--enable_deepspeed` the official script takes AdamW whatever it says"
WITHOUT_MIXUP = "without `--mixup` the official script does not read it either"
VALIDATION = (
    "no validation loss is computed while training; `eva-fast eval OUTPUT_DIR --data FOLDER` judges "
    "the features"
)
SGD = "AdamW has none; the official script reads it for SGD alone"


def _two(name: str) -> Any:
    return refused("it takes two numbers", lambda said: len(getattr(said, name)) != 2)


def _other_optimiser(said: Said) -> bool:
    return said.opt.lower() not in FUSED


def _teacher_elsewhere(said: Said) -> bool:
    wanted = teacher_of(said.clip_model, said.cache_dir)
    return "cache_dir" in said.given and wanted.startswith("openai/")


def _far(said: Said) -> bool:
    """Whether --resume leads out of the folder of the run."""
    here = os.path.realpath(said.output_dir) if said.output_dir else None
    there = os.path.realpath(said.resume)
    return bool(said.resume) and (here is None or os.path.commonpath([here, there]) != here)


def _never(said: Said) -> bool:
    return bool(said.resume) and not _far(said) and not said.auto_resume


def _launched_otherwise(said: Said) -> bool:
    return "world_size" in said.given and str(said.world_size) != os.environ.get("WORLD_SIZE", "1")


FLAGS: tuple[Flag, ...] = (
    flag("batch_size", int, 32, used("times the processes and `--update_freq` it is `batch_size`")),
    flag("epochs", int, 150, becomes("epochs")),
    flag("update_freq", int, 1, becomes("accumulate")),
    flag("save_ckpt_freq", int, 1, used(
        "`checkpoint_every`, and a `checkpoint-N.pth`, at the end of each so many epochs"),
        refused("it is a number of epochs, at least 1", lambda said: said.save_ckpt_freq < 1)),
    flag("teacher_type", str, "clip", refused("the official script knows `clip` alone")),
    flag("teacher_model_path", str, None, warned(f"{UNREAD}: the teacher is `--clip_model`")),
    flag("clip_model", str, "ViT-L/14", used(
        "`teacher`: the file of that name in `--cache_dir`, else `openai/NAME`; or a file"),
        refused(f"it is {', '.join(CLIPS)} or a file; CLIP's ResNets give no features of patches",
                lambda said: not is_clip(said.clip_model))),
    flag("cache_dir", str, "/sharefs/yxf/weights/clip/large", used(
        "where the file of `--clip_model` is looked for"), warned(
        "it does not hold the file of `--clip_model`, which comes from the cache of open_clip, or is "
        "downloaded to there", _teacher_elsewhere)),
    flag("model", str, "eva_g_patch14_224", used(
        "`model`; also eva_fast's other `eva_SIZE_patchP_R`. With `--mae` the official "
        "`mae_vit_...`, which become `model`, `decoder_depth`, `decoder_dim`, `decoder_heads`")),
    flag("mae", None, False, used(
        "`objective` is `mae`. The official code minimises plus the cosine, which its published log "
        "contradicts; eva_fast minus the cosine")),
    flag("grad_ckpt", None, False, becomes("grad_checkpointing")),
    flag("stop_grad_conv1", None, False, used("`patch_embed_grad` is 0.1"), warned(
        WITH_MAE, lambda said: said.mae and said.stop_grad_conv1)),
    flag("rel_pos_bias", None, False, used("`relative_bias` is `shared`"),
         warned(WITH_MAE, lambda said: said.mae and said.rel_pos_bias),
         refused("one of the two, as in the official script", lambda said: not said.mae
                 and said.rel_pos_bias and said.decoupled_rel_pos_bias)),
    flag("decoupled_rel_pos_bias", None, False, used("`relative_bias` is `decoupled`"),
         warned(WITH_MAE, lambda said: said.mae and said.decoupled_rel_pos_bias),
         off="disable_decoupled_rel_pos_bias"),
    flag("abs_pos_emb", None, True, refused("students of EVA-01 have positions; leave it out"),
         off="disable_abs_pos_emb"),
    flag("layer_scale_init_value", float, 0.0, used("above 0 it is `layer_scale`"), warned(
        WITH_MAE, lambda said: said.mae and said.layer_scale_init_value > 0)),
    flag("num_mask_patches", int, 105, used(
        "`mask_count`: exactly so many (official masks have up to a tenth fewer); with `--mae` three "
        "quarters"),
        warned("with `--mae` the official script masks three quarters whatever it says: so it is here",
               lambda said: said.mae and "num_mask_patches" in said.given)),
    flag("max_mask_patches_per_block", int, None, used("`mask_max_block`"), warned(
        ONE_BY_ONE, lambda said: said.mae and "max_mask_patches_per_block" in said.given)),
    flag("min_mask_patches_per_block", int, 16, used("`mask_min_block`"), warned(
        ONE_BY_ONE, lambda said: said.mae and "min_mask_patches_per_block" in said.given)),
    flag("input_size", int, 224, becomes("img_size")),
    flag("second_input_size", int, 224, warned(
        "the teacher sees the student's crop, resized so that its patches are the student's",
        lambda said: said.second_input_size != said.input_size)),
    flag("drop_path", float, 0.1, used("`drop_path`; with `--mae` 0"), warned(
        WITH_MAE,
        lambda said: said.mae and "drop_path" in said.given and said.drop_path > 0)),
    flag("opt", str, "adamw", used("AdamW, fused or not"),
         warned(WITH_DEEPSPEED, lambda said: _other_optimiser(said) and said.enable_deepspeed),
         refused("eva_fast has AdamW alone",
                 lambda said: _other_optimiser(said) and not said.enable_deepspeed)),
    flag("opt_eps", float, 1e-6, becomes("eps")),
    flag("opt_betas", float, [0.9, 0.98], becomes("betas"), _two("opt_betas"), several=True),
    flag("clip_grad", float, 3.0, becomes("clip_grad")),
    flag("momentum", float, 0.9, warned(SGD)),
    flag("weight_decay", float, 0.05, becomes("weight_decay")),
    flag("lr", float, 1e-3, becomes("lr")),
    flag("warmup_lr", float, 1e-6, warned(f"{UNREAD}: the warm-up begins at 0")),
    flag("min_lr", float, 1e-5, becomes("min_lr")),
    flag("lr_sched_type", str, "cos", refused("the rate falls as a cosine")),
    flag("warmup_epochs", int, 2, used("`warmup_steps`, that many epochs of them")),
    flag("warmup_steps", int, -1, used("`warmup_steps`; wins over `--warmup_epochs` where above 0")),
    flag("model_ema", None, False, warned(
        f"{UNREAD}; `eva-fast pretrain --ema DECAY` keeps an average")),
    flag("color_jitter", float, 0.0, used("`color_jitter`, of both views; below 0 as 0")),
    flag("train_interpolation", str, "bicubic", used("`interpolation`"), warned(
        BILINEAR, lambda said: said.train_interpolation not in CHOICES)),
    flag("second_interpolation", str, "bicubic", used(
        "`teacher_interpolation` where it is not that of `--train_interpolation`"), warned(
        BILINEAR, lambda said: said.second_interpolation not in NUMBERS)),
    flag("crop_scale", float, [0.2, 1.0], becomes("crop_scale"), _two("crop_scale"), several=True),
    flag("crop_ratio", float, [3 / 4, 4 / 3], becomes("crop_ratio"), _two("crop_ratio"), several=True),
    flag("mixup", float, 0.0, refused(
        "above 0: images are not mixed (the official script takes partners from a GPU's own batch, "
        "so that results follow the number of GPUs); leave it out, or vary images by `--color_jitter`",
        lambda said: said.mixup > 0)),
    flag("cutmix", float, 0.0, warned(WITHOUT_MIXUP)),
    flag("cutmix_minmax", float, None, warned(WITHOUT_MIXUP), several=True),
    flag("mixup_prob", float, 1.0, warned(WITHOUT_MIXUP)),
    flag("mixup_switch_prob", float, 0.5, warned(WITHOUT_MIXUP)),
    flag("mixup_mode", str, "batch", warned(WITHOUT_MIXUP)),
    flag("finetune", str, "", used("`init_from`"), refused(
        "of an URL: download it, and give the file", lambda said: "://" in said.finetune)),
    flag("model_key", str, "model|module", warned(
        "eva_fast finds the state dict by itself, an average of the weights before others; for another: "
        "save that entry by itself")),
    flag("model_prefix", str, "", warned(UNREAD)),
    flag("data_set", str, "image_folder", warned(
        "the official script reads `--data_path` as a folder of images whatever it says: so it is here"),
        choices=("CIFAR", "IMNET", "image_folder")),
    flag("val_data_set", str, "IMNET", warned(VALIDATION), choices=("CIFAR", "IMNET", "image_folder")),
    flag("crop_pct", float, None, warned(VALIDATION)),
    flag("data_path", str, "/path/to/merge4pt", becomes("data")),
    flag("val_data_path", str, "/path/to/ImageNet-1K", warned(
        VALIDATION, lambda said: "val_data_path" in said.given)),
    flag("imagenet_default_mean_and_std", None, False, used(
        "`normalize` is `imagenet`, of the student's images; the teacher's are normalised by CLIP's, as "
        "in the official script")),
    flag("bf16", None, False, used("`precision` is `bf16`, else `fp16`; on a CPU `fp32`")),
    flag("output_dir", str, "", used("`out`"), warned(
        "the official script saves nothing then; this run is in a folder of its own below `runs`",
        lambda said: not said.output_dir)),
    flag("log_dir", str, None, used("`track`: TensorBoard's files"), warned(
        "TensorBoard's files are in OUTPUT_DIR/tensorboard",
        lambda said: bool(said.log_dir) and os.path.realpath(said.log_dir)
        != os.path.realpath(os.path.join(said.output_dir, "tensorboard")))),
    flag("device", str, "cuda", used("`device`; where it is not given, `auto`")),
    flag("seed", int, 88, used(
        "`seed`: of all processes and of all that is drawn (the official script adds the rank, and "
        "leaves crops and masks to chance)")),
    flag("rand", None, False, used("a `seed` by chance; a run that goes on keeps its own")),
    flag("resume", str, "", used("goes on from the newest checkpoint of OUTPUT_DIR"), refused(
        "it lies outside of `--output_dir`, whose newest checkpoint a run goes on from; "
        "`--finetune` begins with the weights of a file", _far),
        refused("`--no_auto_resume` says that the run is not to go on", _never)),
    flag("auto_resume", None, True, used("`resume` is `auto` where there is `--output_dir`"),
         off="no_auto_resume"),
    flag("auto_resume_iter", None, False, used(
        "`rewinds` is 2, else 0: whether a run whose loss is not finite goes back to its last "
        "checkpoint, or stops")),
    flag("start_epoch", int, 0, refused(
        "a run begins at 0, and one that goes on where its checkpoint was written; leave it out")),
    flag("num_workers", int, 10, becomes("workers")),
    flag("pin_mem", None, True, warned("batches on their way to a GPU are always pinned"),
         off="no_pin_mem"),
    flag("world_size", int, 1, warned(
        "the launcher's WORLD_SIZE counts, as in the official script", _launched_otherwise)),
    flag("local_rank", int, -1, used("LOCAL_RANK where the launcher has not set it")),
    flag("dist_url", str, "env://", refused(
        "processes meet where MASTER_ADDR and MASTER_PORT say, as torchrun sets them")),
    flag("enable_deepspeed", None, False, used("`sharding` by `--zero_stage`, else `replicate`")),
    flag("zero_stage", int, 1, used(
        "with `--enable_deepspeed` `sharding`: 0 `replicate`, 1 `zero2` (gradients are sharded too), "
        "2 `zero2`, 3 `full`"),
        refused("it is 0 to 3", lambda said: said.zero_stage not in range(4)),
        warned("without `--enable_deepspeed` the official script does not read it either",
               lambda said: said.zero_stage != 1 and not said.enable_deepspeed)),
    # What DeepSpeed adds to the parser.
    flag("deepspeed", None, False, warned("DeepSpeed is not used; `--enable_deepspeed` shards")),
    flag("deepspeed_config", str, None, warned("the official script writes its own over it")),
    flag("deepscale", None, False, warned("DeepSpeed is not used")),
    flag("deepscale_config", str, None, warned("DeepSpeed is not used")),
)  # fmt: skip
