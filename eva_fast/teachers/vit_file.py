"""Vision transformers out of weight files and folders: DINOv2, SigLIP, ViT, EVA's students.

Names are brought to those of `vit.py` by `weights/naming/vit.py`. Sizes are read off the tensors; what
shapes do not tell (heads, kind of GELU, epsilon, normalisation) is taken from a configuration beside the
file, else it is what that family's published models have, and the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eva_fast.errors import UsageError
from eva_fast.layers.inputs import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from eva_fast.teachers.fit import check_fits, count_heads, native_grid
from eva_fast.teachers.vit import PREFIX, VitConfig, VitTower, folded
from eva_fast.weights import Weights, naming
from eva_fast.weights.blocks import count_blocks
from eva_fast.weights.hints import vit_hints

logger = logging.getLogger(__name__)

_HALF = (0.5, 0.5, 0.5)
_IMAGENET = dict(activation="gelu", eps=1e-6, mean=IMAGENET_MEAN, std=IMAGENET_STD)
_SIGLIP = dict(activation="gelu_tanh", eps=1e-6, mean=_HALF, std=_HALF)
_USUAL: dict[naming.Naming, dict[str, Any]] = {
    naming.vit.DINOV2: _IMAGENET,
    naming.vit.HF_DINOV2: _IMAGENET,
    naming.vit.HF_SIGLIP: _SIGLIP,
    naming.vit.HF_VIT: dict(activation="gelu", eps=1e-12, mean=_HALF, std=_HALF),
    naming.vit.TIMM: dict(activation="gelu", eps=1e-6, mean=_HALF, std=_HALF),
    naming.vit.TIMM_POOLED: dict(activation="gelu", eps=1e-6, mean=_HALF, std=_HALF),
    naming.vit.EVA: dict(activation="gelu", eps=1e-6, mean=CLIP_MEAN, std=CLIP_STD),
}
# Hugging Face's names of activations.
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh"}

_FEED_FORWARD = ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight")


def read_vit(
    weights: Weights, hints: Mapping[str, Any] | None = None
) -> tuple[VitConfig, dict[str, Tensor]]:
    """Sizes and weights of the vision transformer in a weight file, for which `naming.find(weights,
    naming.VIT)` has an answer. UsageError for what does not fit together.

    hints: what is known of it (activation, image_size, eps, mean, std); what the file's surroundings
    say goes before."""
    found = naming.find(weights, naming.VIT)
    assert found is not None
    names, prefix = found
    if others := [other for other in names.prefixes(weights) if other != prefix]:
        raise UsageError(
            f"{weights.path} holds several networks ({', '.join((prefix, *others))}): save the one "
            "that is to teach as a file of its own"
        )
    state = names.read(weights, prefix)
    if any(name.startswith("rel_pos_bias.") for name in state):
        raise UsageError(
            f"{weights.path}: its attention has a bias of relative positions, which teachers have not "
            "here: load it by yourself and give the module as teacher="
        )
    for name in ("patch_embed.proj.weight", "pos_embed", *_FEED_FORWARD):
        if name not in state:
            raise UsageError(f"{weights.path}: the vision transformer lacks {name!r}")
    known = {key: value for key, value in (hints or {}).items() if value is not None}
    config = _config(weights, state, names, known | vit_hints(weights))
    with torch.device("meta"):
        expected = VitTower(config, config.grid).state_dict()
    what = f"a vision transformer of width {config.width} and {config.layers} layers"
    check_fits(weights.path, what, folded(state, config, config.grid), expected)
    return config, state


def _config(
    weights: Weights, state: Mapping[str, Tensor], names: naming.Naming, hints: Mapping[str, Any]
) -> VitConfig:
    conv, positions = state["patch_embed.proj.weight"], state["pos_embed"]
    if conv.ndim != 4 or conv.shape[1] != 3 or conv.shape[2] != conv.shape[3]:
        raise UsageError(
            f"{weights.path}: patch_embed.proj.weight is {list(conv.shape)}, not "
            "[width,3,patch,patch]"
        )
    width, patch = conv.shape[0], conv.shape[2]
    for name in ("pos_embed", *PREFIX):
        if name in state and (state[name].ndim != 3 or state[name].shape[::2] != (1, width)):
            shape = list(state[name].shape)
            raise UsageError(f"{weights.path}: {name} is {shape}, not [1,tokens,{width}]")
    layers = count_blocks(state, r"blocks\.(\d+)\.")
    prefix = sum(state[name].shape[1] for name in PREFIX if name in state)
    usual = dict(_USUAL[names])
    if names is naming.vit.TIMM and any("attn_pool." in name for name in weights):
        usual = dict(_SIGLIP)
    elif names in (naming.vit.TIMM, naming.vit.TIMM_POOLED) and "blocks.0.ls1.gamma" in state:
        usual = dict(_IMAGENET)
    known = {key: hints[key] for key in usual if hints.get(key) is not None}
    if "activation" in known:
        known["activation"] = _ACTIVATIONS.get(known["activation"], known["activation"])
    fc1, fc2 = (state[name] for name in _FEED_FORWARD)
    if fc1.ndim != 2 or fc2.ndim != 2:
        raise UsageError(f"{weights.path}: {' and '.join(_FEED_FORWARD)} are no matrices")
    if len(fc1) == 2 * fc2.shape[1]:
        known["activation"] = "swiglu"
    if assumed := sorted(usual.keys() - known.keys() - {"eps"}):
        said = ", ".join(f"{key} {usual[key]}" for key in assumed)
        logger.warning(
            "%s does not say everything about its network; assuming %s. A config.json and "
            "preprocessor_config.json beside it decide; for timm's, timm/NAME:FILE.",
            weights.path, said,
        )  # fmt: skip
    try:
        return VitConfig(
            width=width,
            layers=layers,
            heads=count_heads(hints.get("heads"), width, layers),
            mlp_hidden=fc2.shape[1],
            patch_size=patch,
            grid=_grid(positions.shape[1], patch, prefix, "cls_token" in state, hints),
            prefix=prefix,
            last_norm=names is not naming.vit.TIMM_POOLED,
            **{**usual, **known},
        )
    except UsageError as error:
        raise UsageError(f"{weights.path}: {error}") from error


def _grid(
    positions: int, patch: int, prefix: int, cls: bool, hints: Mapping[str, Any]
) -> tuple[int, int]:
    """The grid of the patches' positions; those of the class token, of no token or of all tokens in
    front of the patches may lie before them."""
    for extra in dict.fromkeys((int(cls), 0, prefix)):
        try:
            return native_grid(positions - extra, patch, hints)
        except UsageError as error:
            refused = error
    raise refused
