"""CLIP image towers out of weight files of OpenAI, open_clip, Hugging Face and timm.

Names are brought to those of `clip.py` by `weights/naming`. Sizes are read off the tensors; what
shapes do not tell (heads, kind of GELU, normalisation) comes as hints from `weights/hints.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eva_fast.errors import UsageError
from eva_fast.teachers.clip import ClipConfig, ClipTower
from eva_fast.teachers.fit import check_fits, count_heads, native_grid
from eva_fast.weights import Weights, naming
from eva_fast.weights.blocks import count_blocks

logger = logging.getLogger(__name__)

NAMINGS = (
    "OpenAI / open_clip (visual.conv1.weight, visual.transformer.resblocks.0...), "
    "Hugging Face (vision_model.embeddings..., vision_model.encoder.layers.0...), "
    "timm CLIP ViT (patch_embed.proj.weight, norm_pre.weight, blocks.0...)"
)


def read_clip(weights: Weights, hints: Mapping[str, Any]) -> tuple[ClipConfig, dict[str, Tensor]]:
    """Sizes and weights of the CLIP image tower in a weight file.

    Args:
        hints: any of heads, activation, image_size (one number or two), eps, mean, std.

    Raises:
        UsageError: no CLIP image tower, missing or unexpected keys, wrong shapes.
    """
    found = naming.find(weights, naming.CLIP)
    if found is None:
        raise no_tower(weights)
    names, prefix = found
    state = names.read(weights, prefix)
    for name in ("conv1.weight", "class_embedding", "positional_embedding"):
        if name not in state:
            raise UsageError(f"{weights.path}: the CLIP image tower lacks {name!r}")
    config = _config(weights, state, names.library, hints)
    with torch.device("meta"):
        expected = ClipTower(config, config.grid).state_dict()
    what = f"a CLIP image tower of width {config.width} and {config.layers} layers"
    check_fits(weights.path, what, state, expected)
    return config, state


def _config(
    weights: Weights, state: dict[str, Tensor], library: str, hints: Mapping[str, Any]
) -> ClipConfig:
    conv = state["conv1.weight"]
    if conv.ndim != 4 or conv.shape[1] != 3 or conv.shape[2] != conv.shape[3]:
        raise UsageError(
            f"{weights.path}: the patch convolution is {list(conv.shape)}, not [width,3,patch,patch]"
        )
    width, patch = conv.shape[0], conv.shape[2]
    layers = count_blocks(state, r"transformer\.resblocks\.(\d+)\.")
    hidden = state.get("transformer.resblocks.0.mlp.c_fc.weight")
    proj = state.get("proj")
    activation = hints.get("activation")
    if activation is None:
        activation = _guess_activation(weights, library)
        logger.warning(
            "%s does not say which GELU its tower uses; assuming %s. A config.json or "
            "open_clip_config.json beside it decides.", weights.path, activation,
        )  # fmt: skip
    try:
        return ClipConfig(
            width=width,
            layers=layers,
            heads=count_heads(hints.get("heads"), width, layers),
            mlp_hidden=4 * width if hidden is None else len(hidden),
            patch_size=patch,
            grid=native_grid(len(state["positional_embedding"]) - 1, patch, hints),
            dim=None if proj is None else proj.shape[-1],
            activation=activation,
            ln_pre="ln_pre.weight" in state,
            **{key: hints[key] for key in ("eps", "mean", "std") if hints.get(key) is not None},
        )
    except ValueError as error:
        raise UsageError(f"{weights.path}: {error}") from error


def _guess_activation(weights: Weights, library: str) -> str:
    path = str(weights.path).lower()
    if weights.kind == "torchscript" or "quickgelu" in path or "openai" in path:
        return "quick_gelu"
    if library == "timm":
        return "gelu"
    if library == "hf":
        return "quick_gelu"  # the default of Hugging Face's CLIP configuration
    # OpenAI's and open_clip's names are the same. OpenAI's towers use QuickGELU; open_clip's default
    # is the exact GELU, and it saves whole models, without OpenAI's three scalars.
    whole_model = any(name.endswith("logit_scale") for name in weights)
    from_openai = any(name.endswith("input_resolution") for name in weights)
    return "gelu" if whole_model and not from_openai else "quick_gelu"


def no_tower(weights: Weights) -> UsageError:
    """The error for a file without a CLIP image tower, and what it could be instead."""
    names = list(weights)
    seen = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    if any("visual.layer1" in n or "visual.attnpool" in n for n in names):
        reason = "a CLIP ResNet; only CLIP's vision transformers are teachers"
    elif any(n.startswith("visual.trunk.") for n in names):
        reason = "an open_clip model around a timm tower; load that tower by timm/NAME:FILE"
    else:
        reason = (
            f"no known teacher (its keys: {seen}). A CLIP image tower is known by its keys: "
            f"{NAMINGS}. SigLIP, DINOv2 and other ViTs are known by their keys too. Another network "
            "is known by the model's name at the start of the file's name, or spelled out: "
            "torchvision/NAME:FILE or timm/NAME:FILE"
        )
    return UsageError(f"{weights.path} holds {reason}")
