"""Vision transformers as teachers: the names of `teachers/vit.py`, which are timm's, in other libraries.

cls_token, pos_embed, reg_token, patch_embed.proj, blocks.N.{norm1,attn.qkv,attn.proj,ls1.gamma,norm2,
mlp.fc1,mlp.fc2,ls2.gamma}, norm. Not every network has a class token, registers or scales. What pools
and classifies behind the last norm is not read.
"""

from __future__ import annotations

import torch

from eva_fast.weights.naming import hf, official
from eva_fast.weights.naming.table import KEYLESS, ROWS, Form, Naming, Rule, same

_STEM = ("cls_token", "pos_embed", "patch_embed.proj.{p}", "norm.{p}")
_BLOCK = (
    "blocks.{n}.norm1.{p}",
    "blocks.{n}.attn.proj.{p}",
    "blocks.{n}.norm2.{p}",
    "blocks.{n}.mlp.fc1.{p}",
    "blocks.{n}.mlp.fc2.{p}",
)
_SCALES = ("blocks.{n}.ls1.gamma", "blocks.{n}.ls2.gamma")
_HEADS = (Rule((), "head.{rest}"), Rule((), "fc_norm.{p}"), Rule((), "attn_pool.{rest}"))

TIMM = Naming(
    "timm",
    probes=("blocks.0.attn.qkv.bias", "pos_embed", "patch_embed.proj.weight", "norm.weight"),
    rules=(
        *same(*_STEM, "reg_token", "blocks.{n}.attn.qkv.{p}", *_BLOCK, *_SCALES),
        Rule("reg_token", "dist_token"),  # DeiT's
        Rule((), "head_dist.{p}"),
        *_HEADS,
    ),
)
"""timm's `VisionTransformer` where the last norm is of all tokens."""

TIMM_POOLED = Naming(
    "timm",
    probes=("blocks.0.attn.qkv.bias", "pos_embed", "patch_embed.proj.weight", "fc_norm.weight"),
    rules=TIMM.rules,
)
"""The same where it is of their mean: the tokens themselves have none."""

DINOV2 = Naming(
    "dinov2",
    probes=("blocks.0.ls1.gamma", "mask_token", "pos_embed", "blocks.0.attn.qkv.bias"),
    rules=(
        *same(*_STEM, "blocks.{n}.attn.qkv.{p}", *_BLOCK, *_SCALES),
        Rule("reg_token", "register_tokens"),
        Rule("blocks.{n}.mlp.fc1.{p}", "blocks.{n}.mlp.w12.{p}"),  # gated, in the giant
        Rule("blocks.{n}.mlp.fc2.{p}", "blocks.{n}.mlp.w3.{p}"),
        Rule((), "mask_token"),
        *_HEADS,
    ),
)
"""DINOv2's authors (github.com/facebookresearch/dinov2), with registers and without. Of the giant, whose
MLP is gated, it only reads the names."""

_BIASES = Form(
    lambda parts: (torch.cat([t for t in KEYLESS.write(parts) if t is not None]),),
    lambda parts: KEYLESS.read(parts[0].chunk(3) if parts[0] is not None else ()),
)
"""Theirs are biases of query and value, ours one of query, key and value, of which the key's is 0."""

EVA = Naming(
    "official",
    probes=official.EVA.probes,
    rules=(
        *same(*_STEM, "blocks.{n}.attn.qkv.weight", *_BLOCK),
        Rule(
            "blocks.{n}.attn.qkv.bias",
            ("blocks.{n}.attn.q_bias", "blocks.{n}.attn.v_bias"),
            _BIASES,
        ),
        Rule("blocks.{n}.ls1.gamma", "blocks.{n}.gamma_1"),
        Rule("blocks.{n}.ls2.gamma", "blocks.{n}.gamma_2"),
        *(Rule((), name) for name in official.PRETRAINING),
        *_HEADS,
    ),
)
"""EVA-01: a student of one's own, for example."""


def _hugging_face(
    layer: str, attention: tuple[str, str, str, str], norms: tuple[str, str], mlp: tuple[str, str]
) -> tuple[Rule, ...]:
    """The rules of a block: names of query, key, value and projection, of norms and of the MLP."""
    query, key, value, out = (layer + part + ".{p}" for part in attention)
    one, two = (layer + part + ".{p}" for part in norms)
    up, down = (layer + part + ".{p}" for part in mlp)
    return (
        Rule("blocks.{n}.norm1.{p}", one),
        Rule("blocks.{n}.attn.qkv.{p}", (query, key, value), ROWS),
        Rule("blocks.{n}.attn.proj.{p}", out),
        Rule("blocks.{n}.norm2.{p}", two),
        Rule("blocks.{n}.mlp.fc1.{p}", up),
        Rule("blocks.{n}.mlp.fc2.{p}", down),
    )


_INNER = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))
_VIT_ATTENTION = (_INNER[0], _INNER[1], _INNER[2], "attention.output.dense")
_HF_STEM = (
    Rule("cls_token", "embeddings.cls_token"),
    Rule("pos_embed", "embeddings.position_embeddings"),
    Rule("patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
    Rule("norm.{p}", "layernorm.{p}"),
    Rule((), "embeddings.mask_token"),
    Rule((), "pooler.dense.{p}"),
)

HF_VIT = Naming(
    "hf",
    probes=hf.VIT.probes,
    rules=(
        *_HF_STEM,
        Rule("reg_token", "embeddings.distillation_token"),  # DeiT's
        *_hugging_face(
            "encoder.layer.{n}.",
            _VIT_ATTENTION,
            ("layernorm_before", "layernorm_after"),
            ("intermediate.dense", "output.dense"),
        ),
    ),
)
"""transformers' `ViTModel`, also inside `ViTForImageClassification`, `ViTMAEModel`, `DeiT`'s kin."""

HF_DINOV2 = Naming(
    "hf",
    probes=("encoder.layer.0.layer_scale1.lambda1", "embeddings.cls_token"),
    rules=(
        *_HF_STEM,
        Rule("reg_token", "embeddings.register_tokens"),
        *_hugging_face("encoder.layer.{n}.", _VIT_ATTENTION, ("norm1", "norm2"), ("mlp.fc1", "mlp.fc2")),
        Rule("blocks.{n}.mlp.fc1.{p}", "encoder.layer.{n}.mlp.weights_in.{p}"),  # gated, in the giant
        Rule("blocks.{n}.mlp.fc2.{p}", "encoder.layer.{n}.mlp.weights_out.{p}"),
        Rule("blocks.{n}.ls1.gamma", "encoder.layer.{n}.layer_scale1.lambda1"),
        Rule("blocks.{n}.ls2.gamma", "encoder.layer.{n}.layer_scale2.lambda1"),
    ),
)  # fmt: skip
"""transformers' `Dinov2Model` and `Dinov2WithRegistersModel`. Of the giant, whose MLP is gated, it only
reads the names."""

_SIGLIP_ATTENTION = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
)
_UNBATCHED = Form(
    lambda parts: tuple(None if t is None else t[None] for t in parts),
    lambda parts: tuple(None if t is None else t[0] for t in parts),
)
"""Theirs [N,D] is ours [1,N,D]."""

HF_SIGLIP = Naming(
    "hf",
    # CLIP's patch convolution has no bias.
    probes=("embeddings.patch_embedding.bias", "embeddings.position_embedding.weight"),
    rules=(
        Rule("pos_embed", "embeddings.position_embedding.weight", _UNBATCHED),
        Rule("patch_embed.proj.{p}", "embeddings.patch_embedding.{p}"),
        Rule("norm.{p}", "post_layernorm.{p}"),
        *_hugging_face(
            "encoder.layers.{n}.",
            _SIGLIP_ATTENTION,
            ("layer_norm1", "layer_norm2"),
            ("mlp.fc1", "mlp.fc2"),
        ),
        Rule((), "embeddings.position_ids"),
        Rule((), "head.{rest}"),
    ),
)
"""The image tower of transformers' `SiglipModel` and `SiglipVisionModel`."""

ALL = (DINOV2, TIMM, TIMM_POOLED, EVA, HF_DINOV2, HF_VIT, HF_SIGLIP)
"""Where a vision transformer is looked for, in this order."""
