"""Files for timm.

timm builds its `eva_*` models with the last norm behind the mean (`fc_norm`), for fine-tuning; the
student's norm is of every token. So its models are built with `use_fc_norm=False`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eva_fast.errors import UsageError
from eva_fast.layers.inputs import STATISTICS
from eva_fast.model import BeitViT, EvaViT, MaeEncoder, ModelSizes, SwinSizes, SwinV2
from eva_fast.model.networks.timm import mlp_ratio
from eva_fast.weights import naming
from eva_fast.weights.formats.exported import OWN_STATISTICS, TORCH_SUFFIXES, Exported, plain, text
from eva_fast.weights.formats.official import in_dtype
from eva_fast.weights.student import PRETRAINING_ONLY, write_student
from eva_fast.weights.writer import write, write_torch

TIMM_MODEL = "eva_giant_patch14_224"
"""timm's plain EVA-01: any other size of it is asked for by arguments."""
TIMM_BEIT = "beit_base_patch16_224"
TIMM_SWIN = "swinv2_tiny_window8_256"
"""timm's Swin V2; likewise."""
TIMM_VIT = "vit_base_patch16_224"
"""timm's plain ViT, which MAE's encoder is; likewise."""
TIMM_GIVES = (
    "# model.forward_features(images): all tokens after the last norm, class token first, [B,T,D]\n"
    "# model(images): the mean of the patch tokens, [B,D]\n"
)
_SWIN_GIVES = (
    "# model.forward_features(images): the last tokens after the last norm, [B,rows,columns,D]\n"
    "# model(images): their mean, [B,D]\n"
)


def timm_arguments(sizes: ModelSizes) -> dict[str, Any]:
    """What `timm.create_model("eva_giant_patch14_224", ...)` is to be given for a student's sizes."""
    channels = {} if sizes.channels == 3 else {"in_chans": sizes.channels}
    return dict(
        **channels,
        img_size=sizes.img_size,
        patch_size=sizes.patch_size,
        embed_dim=sizes.embed_dim,
        depth=sizes.depth,
        num_heads=sizes.num_heads,
        mlp_ratio=mlp_ratio(sizes.mlp_hidden, sizes.embed_dim),
        global_pool="avg",
        use_fc_norm=False,
    )


def timm_model(model: EvaViT) -> tuple[str, dict[str, Any]]:
    """The name of timm's model of EVA's student, and the arguments for its sizes. A shared relative
    position bias has timm's `Beit` alone. UsageError for what timm has no place for."""
    arguments, variant = timm_arguments(model.sizes), model.variant
    if variant.layer_scale is not None:
        arguments["init_values"] = variant.layer_scale
    if variant.relative_bias == "none":
        return TIMM_MODEL, arguments
    if variant.relative_bias == "decoupled":
        raise UsageError(
            "timm has no place for a decoupled relative position bias: the student is written as "
            "official"
        )
    arguments |= dict(
        use_abs_pos_emb=True, use_rel_pos_bias=False, use_shared_rel_pos_bias=True,
        init_values=variant.layer_scale or 0.0,  # timm passes over None, and this model has 0.1
    )  # fmt: skip
    return TIMM_BEIT, arguments


def write_timm(model: EvaViT, path: Path) -> Exported:
    _file(plain(model, naming.timm.EVA), path)
    normalised = model.variant.normalize
    return _snippet(*timm_model(model), path, normalised, model.sizes.channels)


def write_timm_vit(model: MaeEncoder, path: Path, dtype: torch.dtype) -> Exported:
    """One file for timm's plain ViT, whose names are the official ones too."""
    tensors = in_dtype(model, dtype)
    _file(tensors, path, lambda: write_student(model, path, tensors, dtype))
    arguments = {**timm_arguments(model.sizes), "fc_norm": False}
    del arguments["use_fc_norm"]
    return _snippet(TIMM_VIT, arguments, path, model.statistics, model.sizes.channels)


def timm_swin_arguments(sizes: SwinSizes) -> dict[str, Any]:
    """What `timm.create_model("swinv2_tiny_window8_256", ...)` is to be given for a student's sizes."""
    return dict(
        img_size=sizes.img_size,
        patch_size=sizes.patch_size,
        window_size=sizes.window_size,
        embed_dim=sizes.embed_dim,
        depths=sizes.depths,
        num_heads=sizes.num_heads,
        mlp_ratio=float(sizes.mlp_ratio),
        global_pool="avg",
    )


def write_timm_swin(model: SwinV2, path: Path) -> Exported:
    """One file for timm's `SwinTransformerV2`."""
    _file(naming.swin.TIMM_V2.write(model.official_state_dict()), path)
    found = _snippet(TIMM_SWIN, timm_swin_arguments(model.sizes), path, "imagenet")
    return Exported(path, found.snippet.replace(TIMM_GIVES, _SWIN_GIVES))


def timm_beit_arguments(sizes: ModelSizes) -> dict[str, Any]:
    """What `timm.create_model("beit_base_patch16_224", ...)` is to be given for a student's sizes."""
    return dict(
        timm_arguments(sizes),
        use_abs_pos_emb=False,
        use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True,
        init_values=0.1,
    )


def write_timm_beit(model: BeitViT, path: Path) -> Exported:
    """One file for timm's `Beit`, whose names are the official ones."""
    state = model.official_state_dict()
    _file({k: v for k, v in state.items() if k not in PRETRAINING_ONLY}, path)
    arguments = timm_beit_arguments(model.sizes)
    return _snippet(TIMM_BEIT, arguments, path, "imagenet", model.sizes.channels)


def _file(
    tensors: dict[str, Tensor], path: Path, safely: Callable[[], object] | None = None
) -> None:
    """safely: writes them as safetensors, where metadata is to lie beside them."""
    if path.suffix in TORCH_SUFFIXES:
        write_torch(path, tensors)
    elif path.suffix == ".safetensors":
        (safely or partial(write, path, tensors))()
    else:
        raise UsageError(
            f"timm tells what a file is by its name: end {path.name} in .safetensors or .pth"
        )


def _snippet(
    name: str, arguments: dict[str, Any], path: Path, statistics: str, channels: int = 3
) -> Exported:
    options = dict(num_classes=0, **arguments, checkpoint_path=str(path))
    lines = "".join(f"    {key}={text(value)},\n" for key, value in options.items())
    mean, std = STATISTICS[statistics]
    inputs = f"# images normalised by mean {mean} and std {std}\n" if statistics != "clip" else ""
    inputs = inputs if channels == 3 else OWN_STATISTICS
    return Exported(
        path,
        f'import timm\n\nmodel = timm.create_model(\n    "{name}",\n{lines}).eval()\n'
        + inputs
        + TIMM_GIVES,
    )
