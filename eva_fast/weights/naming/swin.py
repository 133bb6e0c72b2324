"""Swin networks, V2 as students and V1 as teachers: ours are the official codes' names, where a merge
ends a stage; in timm it begins the next one.

patch_embed.{proj,norm}, layers.S.blocks.I..., layers.S.downsample.{reduction,norm}, norm.
"""

from __future__ import annotations

from eva_fast.weights.naming.table import Naming, Rule, same

MOST_STAGES = 8
_STEM = ("patch_embed.proj.{p}", "patch_embed.norm.{p}", "norm.{p}")
_MOVED = tuple(
    Rule(f"layers.{s}.downsample.{{rest}}", f"layers.{s + 1}.downsample.{{rest}}")
    for s in range(MOST_STAGES)
)
_COMPUTED = (
    Rule((), "layers.{n}.blocks.{rest}.relative_position_index"),
    Rule((), "layers.{n}.blocks.{rest}.relative_coords_table"),
    Rule((), "layers.{n}.blocks.{rest}.attn_mask"),
)
"""What the official files hold beside the weights, and everybody computes."""
_HEADS = (Rule((), "head.{rest}"), Rule((), "head_dense.{rest}"))
_BLOCK = same("layers.{n}.blocks.{rest}")

_V2 = ("layers.0.blocks.0.attn.q_bias", "layers.0.blocks.0.attn.logit_scale", "norm.weight")
V2 = Naming(
    "official",
    probes=("layers.0.blocks.0.attn.rpe_mlp.0.weight", *_V2),
    rules=(*same(*_STEM), *_COMPUTED, *_BLOCK, *same("layers.{n}.downsample.{rest}"), *_HEADS),
)
"""Feature Distillation's Swin V2 (github.com/SwinTransformer/Feature-Distillation)."""

TIMM_V2 = Naming(
    "timm",
    probes=("layers.0.blocks.0.attn.cpb_mlp.0.weight", *_V2),
    rules=(
        *same(*_STEM),
        *_COMPUTED,
        *(
            Rule(
                f"layers.{{n}}.blocks.{{rest}}.rpe_mlp.{i}.{{p}}",
                f"layers.{{n}}.blocks.{{rest}}.cpb_mlp.{i}.{{p}}",
            )
            for i in (0, 2)
        ),
        *_BLOCK,
        *_MOVED,
        *_HEADS,
    ),
)
"""timm's `SwinTransformerV2`, `swinv2_*`."""

_V1 = (
    "layers.0.blocks.0.attn.relative_position_bias_table",
    "layers.0.blocks.0.attn.qkv.bias",
    "patch_embed.norm.weight",
    "norm.weight",
)
V1 = Naming(
    "official",
    probes=("layers.0.downsample.reduction.weight", *_V1),
    rules=(*same(*_STEM), *_COMPUTED, *_BLOCK, *same("layers.{n}.downsample.{rest}"), *_HEADS),
)
"""Swin (github.com/microsoft/Swin-Transformer) and EsViT's of the same code."""

TIMM_V1 = Naming("timm", _V1, (*same(*_STEM), *_COMPUTED, *_BLOCK, *_MOVED, *_HEADS))
"""timm's `SwinTransformer`, `swin_*`."""
