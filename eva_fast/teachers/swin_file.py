"""Swin transformers out of weight files and folders: the official code's, EsViT's, timm's.

Names are brought to those of `swin.py` by `weights/naming/swin.py`. All sizes are read off the tensors:
the table of positions shows heads and windows. Images are normalised with ImageNet's statistics if a
timm configuration beside the file does not say otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from eva_fast.errors import UsageError
from eva_fast.teachers.fit import check_fits
from eva_fast.teachers.swin import SwinConfig, SwinTower
from eva_fast.weights import Weights, naming
from eva_fast.weights.blocks import count_blocks
from eva_fast.weights.hints import read_json, said_beside, timm_hints


def read_swin(weights: Weights) -> tuple[SwinConfig, dict[str, Tensor]]:
    """Sizes and weights of the Swin in a weight file, for which `naming.find(weights, naming.SWIN)` has
    an answer. UsageError for what does not fit together."""
    found = naming.find(weights, naming.SWIN)
    assert found is not None
    names, prefix = found
    state = names.read(weights, prefix)
    config = _config(weights, state)
    with torch.device("meta"):
        expected = SwinTower(config, config.grid).state_dict()
    what = f"a Swin of width {config.width} and {config.depths} blocks"
    check_fits(weights.path, what, state, expected)
    return config, state


def _config(weights: Weights, state: Mapping[str, Tensor]) -> SwinConfig:
    blocks = [m for name in state if (m := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name))]
    stages = count_blocks(state, r"layers\.(\d+)\.blocks\.")
    count_blocks(state, r"layers\.\d+\.blocks\.(\d+)\.")
    depths = tuple(
        1 + max((int(m[2]) for m in blocks if int(m[1]) == s), default=-1) for s in range(stages)
    )
    try:
        tables = [
            state[f"layers.{s}.blocks.0.attn.relative_position_bias_table"] for s in range(stages)
        ]
        conv, fc1 = state["patch_embed.proj.weight"], state["layers.0.blocks.0.mlp.fc1.weight"]
        width, _, patch, _ = conv.shape
        heads = tuple(table.shape[1] for table in tables)
        windows = tuple((1 + math.isqrt(len(table))) // 2 for table in tables)
    except (KeyError, ValueError, IndexError) as error:
        raise UsageError(f"{weights.path} is no whole Swin: {error}") from None
    if any(size * size != len(table) for size, table in zip((2 * w - 1 for w in windows), tables)):
        raise UsageError(f"{weights.path}: a table of positions is not of a square window")
    if any((width << s) % h for s, h in enumerate(heads)):
        raise UsageError(f"{weights.path}: width {width} does not split over {heads} heads")
    beside = read_json(weights.path.parent / "config.json")  # timm's
    with said_beside(weights.path):
        hints = timm_hints("", beside.get("pretrained_cfg") or {})
    known = {key: hints[key] for key in ("mean", "std") if hints.get(key) is not None}
    return SwinConfig(
        width=width, depths=depths, heads=heads, windows=windows, mlp_hidden=len(fc1),
        patch_size=patch, **known,
    )  # fmt: skip
