"""BEiT's ViT as weight files: the student of Feature Distillation, and the main part of BEiT v2's.

Names are the official codes', which timm's `Beit` has too. What only pre-training needs (mask token,
head, branch of the CLS token) and a classifier are not read. Every size shows in the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from eva_fast.errors import UsageError
from eva_fast.layers.rel_pos import SPECIAL_ROWS
from eva_fast.model import BeitViT, ModelSizes
from eva_fast.weights.naming.table import Naming, Rule, same

TABLE = "rel_pos_bias.relative_position_bias_table"
BEIT = Naming(
    "official",
    probes=(TABLE, "blocks.0.gamma_1", "cls_token", "norm.weight"),
    rules=(
        *same("cls_token", "patch_embed.proj.{p}", TABLE, "blocks.{n}.{rest}", "norm.{p}"),
        Rule((), "rel_pos_bias.relative_position_index"),
        Rule((), "mask_token"),
        Rule((), "lm_head.{p}"),
        Rule((), "head.{p}"),
        Rule((), "cls_pt_layers.{rest}"),
    ),
    absent=("pos_embed",),  # EVA's student with the same options has it
)


def beit_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """State dict of a `BeitViT` among tensors, behind any prefix; None where there is none."""
    prefix = BEIT.find(tensors)
    return None if prefix is None else BEIT.read(tensors, prefix)


def table_side(table: Tensor) -> int:
    """Patches a side of the square grid that a table of relative positions is of. UsageError where it is
    of none."""
    rows = len(table)
    side = (round(max(rows - SPECIAL_ROWS, 0) ** 0.5) + 1) // 2
    if (2 * side - 1) ** 2 + SPECIAL_ROWS != rows:
        raise UsageError(f"{TABLE} has {rows} rows, which is of no square grid of patches")
    return side


def beit_sizes(state: Mapping[str, Tensor]) -> ModelSizes:
    """Sizes of the student with this state dict. UsageError where it is of no square image."""
    dim, channels, patch, _ = state["patch_embed.proj.weight"].shape
    side, heads = table_side(state[TABLE]), state[TABLE].shape[1]
    numbers = [int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name))]
    return ModelSizes(
        img_size=side * patch,
        patch_size=patch,
        embed_dim=dim,
        depth=max(numbers) + 1,
        num_heads=heads,
        mlp_hidden=state["blocks.0.mlp.fc1.weight"].shape[0],
        channels=channels,
    )


def load_beit(state: Mapping[str, Tensor], where: object) -> BeitViT:
    """The student with this state dict, of whose sizes it is. UsageError for one that is not whole."""
    try:
        model = BeitViT(beit_sizes(state))
        model.load_official(state)
    except (ValueError, KeyError) as error:
        raise UsageError(f"{where}: {error}") from None
    return model
