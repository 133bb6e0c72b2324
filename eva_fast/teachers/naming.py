"""CLIP weights of OpenAI, open_clip, Hugging Face and timm brought to one set of names.

The target names are OpenAI's without `visual.` (see `clip.py`). Sizes are read off the tensors; what
shapes do not tell (heads, kind of GELU, normalisation) comes as hints from `hints.py`.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eva_fast.errors import UsageError
from eva_fast.teachers.clip import ClipConfig, ClipTower
from eva_fast.teachers.weights import Weights

logger = logging.getLogger(__name__)

SCHEMES = (
    "OpenAI / open_clip (visual.conv1.weight, visual.transformer.resblocks.0...), "
    "Hugging Face (vision_model.embeddings..., vision_model.encoder.layers.0...), "
    "timm CLIP ViT (patch_embed.proj.weight, norm_pre.weight, blocks.0...)"
)
# Heads of the published towers whose heads are not 64 wide: ViT-H, ViT-g, ViT-bigG of open_clip.
_HEADS = {(1280, 32): 16, (1408, 40): 16, (1664, 48): 16}

_HF_BLOCK = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
_HF_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_HF_TOP = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.weight": "ln_pre.weight", "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight", "post_layernorm.bias": "ln_post.bias",
}  # fmt: skip
_TIMM_BLOCK = {
    "norm1": "ln_1", "norm2": "ln_2", "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
_TIMM_TOP = {
    "cls_token": "class_embedding", "patch_embed.proj.weight": "conv1.weight",
    "pos_embed": "positional_embedding",
    "norm_pre.weight": "ln_pre.weight", "norm_pre.bias": "ln_pre.bias",
    "norm.weight": "ln_post.weight", "norm.bias": "ln_post.bias",
}  # fmt: skip

# Where a tensor comes from: names in the file, joined along rows if several; then transposed or not.
Source = tuple[tuple[str, ...], bool]


def find_scheme(names: Mapping[str, Any]) -> tuple[str, str] | None:
    """(scheme, prefix) of a CLIP image tower among `names`: "openai", "hf" or "timm"; else None."""
    for scheme, probe, also in (
        ("openai", "transformer.resblocks.0.attn.in_proj_weight", "class_embedding"),
        ("hf", "embeddings.class_embedding", ""),
        ("timm", "blocks.0.attn.qkv.weight", "norm_pre.weight"),
    ):
        for name in names:
            prefix = name[: -len(probe)]
            # An open_clip file has text blocks of the same names, but no class token beside them.
            if name.endswith(probe) and (not also or prefix + also in names):
                return scheme, prefix
    return None


def read_clip(weights: Weights, hints: Mapping[str, Any]) -> tuple[ClipConfig, dict[str, Tensor]]:
    """Sizes and weights of the CLIP image tower in a weight file.

    Args:
        hints: any of heads, activation, image_size (one number or two), eps, mean, std.

    Raises:
        ValueError: no CLIP image tower, missing or unexpected keys, wrong shapes.
    """
    found = find_scheme(weights)
    if found is None:
        raise no_tower(weights)
    scheme, prefix = found
    sources = {"openai": _from_openai, "hf": _from_hf, "timm": _from_timm}[scheme](weights, prefix)
    for name in ("conv1.weight", "class_embedding", "positional_embedding"):
        if name not in sources:
            raise UsageError(f"{weights.path}: the CLIP image tower lacks {name!r}")
    state = {}
    for name, (parts, transposed) in sources.items():
        tensor = weights[parts[0]] if len(parts) == 1 else torch.cat([weights[p] for p in parts])
        state[name] = tensor.T if transposed else tensor
    state["class_embedding"] = state["class_embedding"].flatten()
    state["positional_embedding"] = state["positional_embedding"].flatten(0, -2)
    config = _config(weights, state, scheme, hints)
    _check(weights, config, state)
    return config, state


def _from_openai(weights: Weights, prefix: str) -> dict[str, Source]:
    return {
        name.removeprefix(prefix): ((name,), False)
        for name in weights
        # A bare tower (no prefix) may lie beside other tensors; a prefix tells them apart.
        if name.startswith(prefix) and (prefix or not name.startswith(("text", "token_", "logit")))
    }


def _from_hf(weights: Weights, prefix: str) -> dict[str, Source]:
    out: dict[str, Source] = {}
    for name in weights:
        key = name.removeprefix(prefix)
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key)
        if name.endswith("visual_projection.weight"):
            out["proj"] = (name,), True
        elif not name.startswith(prefix) or key.endswith("position_ids"):
            continue
        elif key in _HF_TOP:
            out[_HF_TOP[key]] = (name,), False
        elif match and match[2] in _HF_BLOCK:
            out[f"transformer.resblocks.{match[1]}.{_HF_BLOCK[match[2]]}.{match[3]}"] = (
                (name,), False
            )  # fmt: skip
        elif match and match[2] in _HF_QKV:
            start = f"{prefix}encoder.layers.{match[1]}."
            parts = tuple(f"{start}{part}.{match[3]}" for part in _HF_QKV)
            if missing := [part for part in parts if part not in weights]:
                raise UsageError(f"{weights.path}: missing {', '.join(missing)}")
            out[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"] = parts, False
        elif prefix:
            out[key] = (name,), False
    return out


def _from_timm(weights: Weights, prefix: str) -> dict[str, Source]:
    out: dict[str, Source] = {}
    for name in weights:
        if not name.startswith(prefix):
            continue
        source = (name,), False
        key = name.removeprefix(prefix)
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", key)
        if key in _TIMM_TOP:
            out[_TIMM_TOP[key]] = source
        elif match and match[2] == "attn.qkv":
            out[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"] = source
        elif match and match[2] in _TIMM_BLOCK:
            out[f"transformer.resblocks.{match[1]}.{_TIMM_BLOCK[match[2]]}.{match[3]}"] = source
        elif key == "head.weight":
            out["proj"] = (name,), True
        elif key != "head.bias":
            out[key] = source
    # timm keeps CLIP's projection as a head without bias (or a zero one). A head with a bias is a
    # classifier from fine-tuning; its rows are no features.
    if f"{prefix}head.bias" in weights and weights[f"{prefix}head.bias"].any():
        out.pop("proj", None)
        logger.info("%s: the head is a classifier; features before it are used", weights.path)
    return out


def _config(
    weights: Weights, state: dict[str, Tensor], scheme: str, hints: Mapping[str, Any]
) -> ClipConfig:
    conv = state["conv1.weight"]
    if conv.ndim != 4 or conv.shape[1] != 3 or conv.shape[2] != conv.shape[3]:
        raise UsageError(
            f"{weights.path}: the patch convolution is {list(conv.shape)}, not [width,3,patch,patch]"
        )
    width, patch = conv.shape[0], conv.shape[2]
    layers = 1 + max(int(n.split(".")[2]) for n in state if n.startswith("transformer.resblocks."))
    hidden = state.get("transformer.resblocks.0.mlp.c_fc.weight")
    proj = state.get("proj")
    activation = hints.get("activation")
    if activation is None:
        activation = _guess_activation(weights, scheme)
        logger.warning(
            "%s does not say which GELU its tower uses; assuming %s. A config.json or "
            "open_clip_config.json beside it decides.", weights.path, activation,
        )  # fmt: skip
    try:
        return ClipConfig(
            width=width,
            layers=layers,
            heads=_heads(hints.get("heads"), width, layers),
            mlp_hidden=4 * width if hidden is None else len(hidden),
            patch_size=patch,
            grid=_native_grid(len(state["positional_embedding"]) - 1, patch, hints),
            dim=None if proj is None else proj.shape[-1],
            activation=activation,
            ln_pre="ln_pre.weight" in state,
            **{key: hints[key] for key in ("eps", "mean", "std") if hints.get(key) is not None},
        )
    except ValueError as error:
        raise UsageError(f"{weights.path}: {error}") from error


def _heads(hint: Any, width: int, layers: int) -> int:
    if hint is not None:
        return int(hint)
    if (width, layers) in _HEADS:
        return _HEADS[width, layers]
    if width % 64:
        raise UsageError(
            f"the number of heads is unknown: width {width} is no multiple of 64; give it in "
            "config.json (num_attention_heads) or open_clip_config.json (head_width) beside the "
            "weights, or as `heads` in safetensors metadata"
        )
    return width // 64


def _guess_activation(weights: Weights, scheme: str) -> str:
    path = str(weights.path).lower()
    if weights.kind == "torchscript" or "quickgelu" in path or "openai" in path:
        return "quick_gelu"
    if scheme == "timm":
        return "gelu"
    if scheme == "hf":
        return "quick_gelu"  # the default of Hugging Face's CLIP configuration
    # OpenAI's and open_clip's names are the same. OpenAI's towers use QuickGELU; open_clip's default
    # is the exact GELU, and it saves whole models, without OpenAI's three scalars.
    whole_model = any(name.endswith("logit_scale") for name in weights)
    from_openai = any(name.endswith("input_resolution") for name in weights)
    return "gelu" if whole_model and not from_openai else "quick_gelu"


def _native_grid(patches: int, patch: int, hints: Mapping[str, Any]) -> tuple[int, int]:
    size = hints.get("image_size")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else (int(n) for n in size)
        grid = (height // patch, width // patch)
        if grid[0] * grid[1] == patches:
            return grid  # else the configuration speaks of another resolution than these weights
    side = math.isqrt(patches)
    if side * side != patches or patches == 0:
        raise UsageError(f"a position embedding for {patches} patches is not of a square image")
    return side, side


def _check(weights: Weights, config: ClipConfig, state: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        expected = ClipTower(config, config.grid).state_dict()
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    shapes = [
        f"{name} is {list(state[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults = [
        f"{what} {len(names)}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for what, names in (("missing", missing), ("unknown", unknown), ("wrong shape", shapes))
        if names
    ]
    if faults:
        raise UsageError(
            f"{weights.path} does not fit a CLIP image tower of width {config.width} and "
            f"{config.layers} layers ({'; '.join(faults)})"
        )


def no_tower(weights: Weights) -> ValueError:
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
            f"{SCHEMES}. Another network is known by the model's name at the start of the file's "
            "name, or spelled out: torchvision/NAME:FILE or timm/NAME:FILE"
        )
    return ValueError(f"{weights.path} holds {reason}")
