"""The official EVA-01 code (github.com/baaivision/EVA, EVA-01/eva): the student's own names."""

from __future__ import annotations

from eva_fast.weights.naming.table import Naming, Rule, same

STEM = ("cls_token", "pos_embed", "patch_embed.proj.{p}")
TABLE = "rel_pos_bias.relative_position_bias_table"
DECOUPLED = (
    "rel_pos_bias.relative_position_bias_for_high",
    "rel_pos_bias.relative_position_bias_for_width",
)
RELATIVE = (
    *same(TABLE, *DECOUPLED),
    Rule((), "rel_pos_bias.relative_position_index"),
    Rule((), "rel_pos_bias.relative_position_high_index"),
    Rule((), "rel_pos_bias.relative_position_width_index"),
)
"""Tables of relative positions; which pair takes which row is computed."""
BLOCK = same(
    "blocks.{n}.norm1.{p}",
    "blocks.{n}.attn.qkv.weight",
    "blocks.{n}.attn.q_bias",
    "blocks.{n}.attn.v_bias",
    "blocks.{n}.attn.proj.{p}",
    "blocks.{n}.norm2.{p}",
    "blocks.{n}.mlp.fc1.{p}",
    "blocks.{n}.mlp.fc2.{p}",
    "blocks.{n}.gamma_1",
    "blocks.{n}.gamma_2",
)
PRETRAINING = ("mask_token", "lm_head.{p}")
"""What only pre-training needs."""
NO_PRETRAINING = tuple(Rule(name, ()) for name in PRETRAINING)
CLASSIFIER = Rule((), "head.{p}")

EVA = Naming(
    "official",
    probes=("pos_embed", "blocks.0.attn.q_bias", "norm.weight"),
    rules=(*same(*STEM, *PRETRAINING), *RELATIVE, *BLOCK, *same("norm.{p}"), CLASSIFIER),
)
"""Pre-trained: every parameter of the student."""

FINE_TUNED = Naming(
    "official",
    probes=("pos_embed", "blocks.0.attn.q_bias", "fc_norm.weight"),
    rules=(
        *same(*STEM), *RELATIVE, *BLOCK, Rule("norm.{p}", "fc_norm.{p}"), *NO_PRETRAINING, CLASSIFIER,
    ),
)  # fmt: skip
"""Fine-tuned: the mean patch token is taken before the last norm, which therefore is `fc_norm`."""
