"""The official EVA-01 code (github.com/baaivision/EVA, EVA-01/eva): the student's own names."""

from __future__ import annotations

from eva_fast.weights.naming.table import Naming, Rule, same

STEM = ("cls_token", "pos_embed", "patch_embed.proj.{p}")
BLOCK = same(
    "blocks.{n}.norm1.{p}",
    "blocks.{n}.attn.qkv.weight",
    "blocks.{n}.attn.q_bias",
    "blocks.{n}.attn.v_bias",
    "blocks.{n}.attn.proj.{p}",
    "blocks.{n}.norm2.{p}",
    "blocks.{n}.mlp.fc1.{p}",
    "blocks.{n}.mlp.fc2.{p}",
)
PRETRAINING = ("mask_token", "lm_head.{p}")
"""What only pre-training needs."""
NO_PRETRAINING = tuple(Rule(name, ()) for name in PRETRAINING)
CLASSIFIER = Rule((), "head.{p}")

EVA = Naming(
    "official",
    probes=("pos_embed", "blocks.0.attn.q_bias", "norm.weight"),
    rules=(*same(*STEM, *PRETRAINING), *BLOCK, *same("norm.{p}"), CLASSIFIER),
)
"""Pre-trained: every parameter of the student."""

FINE_TUNED = Naming(
    "official",
    probes=("pos_embed", "blocks.0.attn.q_bias", "fc_norm.weight"),
    rules=(
        *same(*STEM), *BLOCK, Rule("norm.{p}", "fc_norm.{p}"), *NO_PRETRAINING, CLASSIFIER,
    ),
)  # fmt: skip
"""Fine-tuned: the mean patch token is taken before the last norm, which therefore is `fc_norm`."""
