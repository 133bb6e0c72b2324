"""Students as other libraries load them: a file or folder, and the lines of Python that load it.

`FORMATS` are names and writers. Every library loads strictly what is written for it and then gives the
student's own features: all tokens after the last norm from `forward_features`, and, where it pools, the
mean of the patch tokens, which is what `eva-fast eval` judges. Mask token and prediction head are for
pre-training alone, so that only the official code, which has a place for them, gets them.

timm builds its `eva_*` models with the last norm behind the mean (`fc_norm`), for fine-tuning; the
student's norm is of every token. So its models are built with `use_fc_norm=False`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eva_fast.errors import UsageError
from eva_fast.files import atomic_write
from eva_fast.layers.block import LAYER_NORM_EPS
from eva_fast.layers.inputs import STATISTICS
from eva_fast.model import Backbone, BeitViT, EvaViT, MaeEncoder, ModelSizes, SwinSizes, SwinV2
from eva_fast.model.networks.timm import mlp_ratio
from eva_fast.model.networks.torchvision import IN_CHANS, first_convolution
from eva_fast.weights import naming
from eva_fast.weights.backbone import write_backbone
from eva_fast.weights.student import PRETRAINING_ONLY, write_student
from eva_fast.weights.writer import write, write_torch

TIMM_MODEL = "eva_giant_patch14_224"
"""timm's plain EVA-01: any other size of it is asked for by arguments."""
TIMM_BEIT = "beit_base_patch16_224"
TIMM_SWIN = "swinv2_tiny_window8_256"
"""timm's Swin V2; likewise."""
TIMM_VIT = "vit_base_patch16_224"
"""timm's plain ViT, which MAE's encoder is; likewise."""
WEIGHTS = "model.safetensors"
TORCH_SUFFIXES = (".pt", ".pth")
# OpenAI's text tower beside ViT-B/16: a start to change at will.
TEXT = dict(context_length=77, vocab_size=49408, width=512, heads=8, layers=12)


ChannelStatistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and deviation, a number a channel."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how the other library loads it."""

    path: Path
    """The file or folder."""
    snippet: str
    """Python that builds `model` in evaluation mode; comments say what it gives for images
    [B,3,H,W] normalised by CLIP's mean and standard deviation, if nothing else is said."""


def export(
    model: EvaViT | MaeEncoder | SwinV2 | BeitViT | Backbone,
    out: str | os.PathLike[str],
    format: str = "official",
    dtype: torch.dtype = torch.float32,
    statistics: ChannelStatistics | None = None,
) -> Exported:
    """Writes a student for another library.

    Args:
        format: "official" (the EVA-01 code: safetensors, or a checkpoint where `out` ends in .pt or
            .pth), "timm" (one file, either kind), "hf" (a folder of the Hugging Face hub for timm and
            transformers), "hf-vit" (the same for transformers' own `ViTModel`), "open_clip" (a folder
            whose image tower this is). MAE's encoder is written as the first two, in timm's names of a
            plain ViT; a Swin V2 as the first two, the official code being Feature Distillation's; a
            network of another library as the first two, which are one: that library's names.
        out: the file, or for the last three the folder; what it held under the same names is replaced.
        dtype: of the numbers; other than float32 for the official code alone, whose published files are
            in float16: the other libraries cast when they load.
        statistics: mean and deviation of each channel that images with other than three are prepared
            with; the folder of the format hf says them.

    UsageError for an unknown format or a folder's name that is a file's; OSError where it cannot be
    written.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown format {format!r}; possible are {', '.join(FORMATS)}")
    path = Path(out).absolute()
    if format in FOLDERS and path.exists() and not path.is_dir():
        raise UsageError(f"format {format} is a folder, and {path} is a file; choose another out=")
    channels = 3 if isinstance(model, SwinV2) else model.sizes.channels
    if channels != 3 and format == "open_clip":
        raise UsageError(
            f"open_clip reads images with three channels, and these have {channels}: the student is "
            f"written as {', '.join(name for name in FORMATS if name != format)}"
        )
    if channels != 3 and format == "hf" and statistics is None:
        raise UsageError(
            f"format hf says how images are prepared, and nothing says it of these with {channels} "
            "channels: export the run's folder, whose config.yaml does"
        )
    if not isinstance(model, EvaViT) and format not in FILES:
        kinds = {
            MaeEncoder: "MAE's encoder", SwinV2: "a Swin V2", BeitViT: "BEiT's ViT",
            Backbone: "a network of another library",
        }  # fmt: skip
        kind = kinds[type(model)]
        raise UsageError(
            f"format {format} is of EVA's student; {kind} is written as {' or '.join(FILES)}"
        )
    if dtype != torch.float32 and (format != "official" or isinstance(model, Backbone)):
        raise UsageError(f"dtype is of EVA's own code; for other libraries {format} is in float32")
    if isinstance(model, EvaViT) and format in ("timm", "hf", "open_clip"):
        timm_model(model)  # says what timm has no place for before anything is written
    if isinstance(model, Backbone):
        return _backbone(model, path)
    if isinstance(model, MaeEncoder):
        return _timm_vit(model, path, dtype)
    if format == "official":
        return _official(model, path, dtype)
    if isinstance(model, BeitViT):
        return _timm_beit(model, path)
    if isinstance(model, SwinV2):
        return _timm_swin(model, path)
    if format == "hf":
        return _hf(model, path, statistics)
    return FORMATS[format](model, path)


def _backbone(model: Backbone, path: Path) -> Exported:
    """One file for the library that the network is of."""
    if path.suffix in TORCH_SUFFIXES:
        write_torch(path, model.official_state_dict())
        imports, load = "import torch", f"torch.load({_text(path)}, weights_only=True)"
    else:
        write_backbone(model, path)
        imports, load = "from safetensors.torch import load_file", f"load_file({_text(path)})"
    family, _, name = model.sizes.name.partition("/")
    given = dict(model.sizes.arguments)
    exchanged = ""
    if family == "torchvision" and given.pop(IN_CHANS, None):
        conv_name, conv = first_convolution(model.network)
        bias = conv.bias is not None
        exchanged = (
            f"model.set_submodule({_text(conv_name)}, torch.nn.Conv2d(\n"
            f"    {conv.in_channels}, {conv.out_channels}, {conv.kernel_size}, {conv.stride}, "
            f"{conv.padding}, bias={bias}\n))\n"
        )
    arguments = "".join(f", {key}={value!r}" for key, value in given.items())
    if family == "timm":
        imports = f"import timm\n{imports}"
        build = f"timm.create_model({_text(name)}, num_classes=0{arguments})"
        gives = "# model.forward_features(images): what was trained\n"
    else:
        imports += "\nfrom torchvision.models import get_model"
        if exchanged and not imports.startswith("import torch\n"):
            imports = f"import torch\n{imports}"
        build = f"get_model({_text(name)}, weights=None{arguments})"
        gives = "# its classifier is a fresh one\n"
    prepared = f"normalised by mean {model.mean} and std {model.std}"
    if model.sizes.channels != 3:
        prepared = "less the mean and over the std of the run"
    return Exported(
        path,
        f"{imports}\n\nmodel = {build}\n{exchanged}model.load_state_dict({load})\nmodel.eval()\n"
        f"# images {prepared}\n{gives}",
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


def _timm_vit(model: MaeEncoder, path: Path, dtype: torch.dtype) -> Exported:
    """One file for timm's plain ViT, whose names are the official ones too."""
    tensors = _in_dtype(model, dtype)
    _timm_file(tensors, path, lambda: write_student(model, path, tensors, dtype))
    arguments = {**timm_arguments(model.sizes), "fc_norm": False}
    del arguments["use_fc_norm"]
    return _timm_snippet(TIMM_VIT, arguments, path, model.statistics, model.sizes.channels)


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


def _timm_swin(model: SwinV2, path: Path) -> Exported:
    """One file for timm's `SwinTransformerV2`."""
    _timm_file(naming.swin.TIMM_V2.write(model.official_state_dict()), path)
    found = _timm_snippet(TIMM_SWIN, timm_swin_arguments(model.sizes), path, "imagenet")
    return Exported(path, found.snippet.replace(_TIMM_GIVES, _TIMM_SWIN_GIVES))


def timm_beit_arguments(sizes: ModelSizes) -> dict[str, Any]:
    """What `timm.create_model("beit_base_patch16_224", ...)` is to be given for a student's sizes."""
    return dict(
        timm_arguments(sizes),
        use_abs_pos_emb=False,
        use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True,
        init_values=0.1,
    )


def _timm_beit(model: BeitViT, path: Path) -> Exported:
    """One file for timm's `Beit`, whose names are the official ones."""
    state = model.official_state_dict()
    _timm_file({k: v for k, v in state.items() if k not in PRETRAINING_ONLY}, path)
    arguments = timm_beit_arguments(model.sizes)
    return _timm_snippet(TIMM_BEIT, arguments, path, "imagenet", model.sizes.channels)


def _official(model: EvaViT | SwinV2 | BeitViT, path: Path, dtype: torch.dtype) -> Exported:
    """A file for the code that published the network: of EVA-01, BEiT v2, Feature Distillation."""
    if path.suffix in TORCH_SUFFIXES:
        write_torch(path, {"model": _in_dtype(model, dtype)})
        load = f'import torch\n\nstate = torch.load({_text(path)}, weights_only=True)["model"]\n'
    else:
        write_student(model, path, _in_dtype(model, dtype), dtype)
        load = f"from safetensors.torch import load_file\n\nstate = load_file({_text(path)})\n"
    (gives,) = (text for kind, text in _OFFICIAL_GIVES.items() if isinstance(model, kind))
    if isinstance(model, EvaViT) and model.variant.relative_bias != "none":
        gives = gives.replace(
            "load_state_dict(state)", "load_state_dict(state, strict=False)"
        ).replace("of the same sizes", "of the same sizes; what it misses is computed")
    return Exported(path, load + gives)


_OFFICIAL_GIVES = {
    EvaViT: (
        "model.load_state_dict(state)  # the official pre-training model of the same sizes\n"
        "# model.forward_features(images, mask): all tokens after the last norm, [B,T,D]\n"
    ),
    SwinV2: (
        "model.load_state_dict(state, strict=False)  # SwinTransformerV2 of the same sizes; what it\n"
        "# misses is computed: relative_coords_table, relative_position_index, attn_mask\n"
    ),
    BeitViT: (
        "model.load_state_dict(state, strict=False)  # the ViT of the same sizes; what it misses is\n"
        "# for pre-training, or computed: relative_position_index\n"
    ),
}


def _in_dtype(model: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """A student's tensors; UsageError where a number is too large for the dtype."""
    state = {name: value.to(dtype) for name, value in model.official_state_dict().items()}
    for name, value in state.items():
        if dtype != torch.float32 and not bool(value.isfinite().all()):
            kind = str(dtype).removeprefix("torch.")
            raise UsageError(f"{name} has numbers that {kind} cannot hold: write another dtype")
    return state


OWN_STATISTICS = "# images less the mean and over the std of the run\n"
_TIMM_GIVES = (
    "# model.forward_features(images): all tokens after the last norm, class token first, [B,T,D]\n"
    "# model(images): the mean of the patch tokens, [B,D]\n"
)
_TIMM_SWIN_GIVES = (
    "# model.forward_features(images): the last tokens after the last norm, [B,rows,columns,D]\n"
    "# model(images): their mean, [B,D]\n"
)


def _timm_file(
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


def _timm(model: EvaViT, path: Path) -> Exported:
    _timm_file(_plain(model, naming.timm.EVA), path)
    normalised = model.variant.normalize
    return _timm_snippet(*timm_model(model), path, normalised, model.sizes.channels)


def _timm_snippet(
    name: str, arguments: dict[str, Any], path: Path, statistics: str, channels: int = 3
) -> Exported:
    options = dict(num_classes=0, **arguments, checkpoint_path=str(path))
    lines = "".join(f"    {key}={_text(value)},\n" for key, value in options.items())
    mean, std = STATISTICS[statistics]
    inputs = f"# images normalised by mean {mean} and std {std}\n" if statistics != "clip" else ""
    inputs = inputs if channels == 3 else OWN_STATISTICS
    return Exported(
        path,
        f'import timm\n\nmodel = timm.create_model(\n    "{name}",\n{lines}).eval()\n'
        + inputs
        + _TIMM_GIVES,
    )


def _hf(model: EvaViT, folder: Path, statistics: ChannelStatistics | None = None) -> Exported:
    _timm_folder(model, folder, statistics)
    return Exported(
        folder,
        "import timm\n\n"
        f"model = timm.create_model({_text('local-dir:' + str(folder))}, pretrained=True).eval()\n"
        "# on the hub: hf-hub:ORGANISATION/NAME\n"
        + _TIMM_GIVES
        + "\nfrom transformers import AutoModel\n\n"
        f"wrapped = AutoModel.from_pretrained({_text(folder)}).eval()\n"
        "# wrapped(images).last_hidden_state and .pooler_output: the same\n",
    )


def _hf_vit(model: EvaViT, folder: Path) -> Exported:
    sizes, (mean, std) = model.sizes, STATISTICS[model.variant.normalize]
    if model.variant.layer_scale is not None or model.variant.relative_bias != "none":
        raise UsageError(
            "transformers' ViTModel has neither LayerScale nor relative positions: the student is "
            "written as official, timm or hf"
        )
    config = dict(
        architectures=["ViTModel"],
        model_type="vit",
        image_size=sizes.img_size,
        patch_size=sizes.patch_size,
        num_channels=sizes.channels,
        hidden_size=sizes.embed_dim,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.num_heads,
        intermediate_size=sizes.mlp_hidden,
        hidden_act="gelu",
        layer_norm_eps=LAYER_NORM_EPS,
        qkv_bias=True,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        torch_dtype="float32",
    )
    side = dict(height=sizes.img_size, width=sizes.img_size)
    images = dict(
        image_processor_type="ViTImageProcessor",
        do_resize=True,
        size=side,
        resample=3,  # bicubic
        do_rescale=True,
        do_normalize=True,
        image_mean=mean,
        image_std=std,
    )
    _write_json(folder / "config.json", config)
    if sizes.channels == 3:  # the library prepares no others
        _write_json(folder / "preprocessor_config.json", images)
    write(folder / WEIGHTS, _plain(model, naming.hf.VIT), {"format": "pt"})
    return Exported(
        folder,
        "from transformers import ViTModel\n\n"
        f"model = ViTModel.from_pretrained({_text(folder)}, add_pooling_layer=False).eval()\n"
        + ("" if sizes.channels == 3 else OWN_STATISTICS)
        + "# model(images).last_hidden_state: all tokens after the last norm, [B,T,D]\n",
    )


def _open_clip(model: EvaViT, folder: Path) -> Exported:
    sizes, (mean, std) = model.sizes, STATISTICS[model.variant.normalize]
    vision = dict(
        image_size=sizes.img_size,
        timm_model_name=f"local-dir:{folder}",
        timm_model_pretrained=True,
        timm_pool="avg",
        timm_proj="linear",
    )
    config = dict(
        model_cfg=dict(embed_dim=512, custom_text=True, vision_cfg=vision, text_cfg=TEXT),
        preprocess_cfg=dict(size=sizes.img_size, mean=mean, std=std, interpolation="bicubic"),
    )
    _write_json(folder / "open_clip_config.json", config)
    _timm_folder(model, folder)
    return Exported(
        folder,
        "import open_clip\n\n"
        "# The text tower and both projections start fresh. The folder stands in its own\n"
        "# open_clip_config.json as timm_model_name: change it there when you move the folder.\n"
        "model = open_clip.create_model(\n"
        f"    {_text('local-dir:' + str(folder))}, load_weights=False, pretrained_image=True\n"
        ").eval()\n"
        "# model.visual.trunk.forward_features(images): all tokens after the last norm, [B,T,D]\n"
        "# model.visual.trunk(images): the mean of the patch tokens, [B,D]\n",
    )


Writer = Callable[[EvaViT, Path], Exported]
FORMATS: dict[str, Writer] = {
    "official": lambda model, path: _official(model, path, torch.float32),
    "timm": _timm,
    "hf": _hf,
    "hf-vit": _hf_vit,
    "open_clip": _open_clip,
}
FILES = ("official", "timm")
FOLDERS = ("hf", "hf-vit", "open_clip")
"""Formats of several files."""


def _plain(model: EvaViT, names: naming.Naming) -> dict[str, Tensor]:
    """The tensors in another library's names, without what only pre-training needs."""
    return names.write(model.official_state_dict())


def _timm_folder(model: EvaViT, folder: Path, statistics: ChannelStatistics | None = None) -> None:
    """What timm reads of a folder: the model's name and arguments, preprocessing, weights."""
    sizes, (mean, std) = model.sizes, statistics or STATISTICS[model.variant.normalize]
    architecture, arguments = timm_model(model)
    pretrained = dict(
        num_classes=0,
        input_size=(sizes.channels, sizes.img_size, sizes.img_size),
        fixed_input_size=True,
        mean=mean,
        std=std,
        interpolation="bicubic",
        crop_pct=1.0,
        first_conv="patch_embed.proj",
        classifier="head",
    )
    config = dict(
        architecture=architecture,
        num_classes=0,
        num_features=sizes.embed_dim,
        global_pool="avg",
        model_args=arguments,
        pretrained_cfg=pretrained,
    )
    _write_json(folder / "config.json", config)
    write(folder / WEIGHTS, _plain(model, naming.timm.EVA), {"format": "pt"})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _text(value: Any) -> str:
    """`value` as Python is written."""
    plain = str(value) if isinstance(value, Path) else value
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, str) else repr(plain)
