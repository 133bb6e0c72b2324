"""Hugging Face transformers: `CLIPVisionModel` and its kin, `ViTModel`, as their files spell them."""

from __future__ import annotations

from eva_fast.weights.naming.table import KEYLESS, ROWS, TRANSPOSED, Naming, Rule

_ATTENTION = "encoder.layers.{n}.self_attn."

CLIP = Naming(
    "hf",
    probes=("embeddings.class_embedding",),
    prefix="vision_model.",
    rules=(
        Rule("class_embedding", "embeddings.class_embedding"),
        Rule("positional_embedding", "embeddings.position_embedding.weight"),
        Rule("conv1.weight", "embeddings.patch_embedding.weight"),
        Rule("ln_pre.{p}", "pre_layrnorm.{p}"),  # sic
        Rule("transformer.resblocks.{n}.ln_1.{p}", "encoder.layers.{n}.layer_norm1.{p}"),
        Rule(
            "transformer.resblocks.{n}.attn.in_proj_{p}",
            (_ATTENTION + "q_proj.{p}", _ATTENTION + "k_proj.{p}", _ATTENTION + "v_proj.{p}"),
            ROWS,
        ),
        Rule("transformer.resblocks.{n}.attn.out_proj.{p}", _ATTENTION + "out_proj.{p}"),
        Rule("transformer.resblocks.{n}.ln_2.{p}", "encoder.layers.{n}.layer_norm2.{p}"),
        Rule("transformer.resblocks.{n}.mlp.c_fc.{p}", "encoder.layers.{n}.mlp.fc1.{p}"),
        Rule("transformer.resblocks.{n}.mlp.c_proj.{p}", "encoder.layers.{n}.mlp.fc2.{p}"),
        Rule("ln_post.{p}", "post_layernorm.{p}"),
        Rule((), "embeddings.position_ids"),  # a buffer of old files
    ),
    beside=(Rule("proj", "visual_projection.weight", TRANSPOSED),),
)
"""The image tower of `CLIPModel` and `CLIPVisionModelWithProjection`."""


_LAYER = "encoder.layer.{n}."
_QKV = tuple(_LAYER + f"attention.attention.{part}." for part in ("query", "key", "value"))

VIT = Naming(
    "hf",
    probes=(
        "embeddings.cls_token",
        "embeddings.position_embeddings",  # BEiT's names are these, without this and keys' biases
        *(name.format(n=0) + "bias" for name in _QKV),
    ),
    rules=(
        Rule("cls_token", "embeddings.cls_token"),
        Rule("pos_embed", "embeddings.position_embeddings"),
        Rule("patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
        Rule("blocks.{n}.norm1.{p}", _LAYER + "layernorm_before.{p}"),
        Rule("blocks.{n}.attn.qkv.weight", tuple(name + "weight" for name in _QKV), ROWS),
        Rule(
            ("blocks.{n}.attn.q_bias", "blocks.{n}.attn.v_bias"),
            tuple(name + "bias" for name in _QKV),
            KEYLESS,
        ),
        Rule("blocks.{n}.attn.proj.{p}", _LAYER + "attention.output.dense.{p}"),
        Rule("blocks.{n}.norm2.{p}", _LAYER + "layernorm_after.{p}"),
        Rule("blocks.{n}.mlp.fc1.{p}", _LAYER + "intermediate.dense.{p}"),
        Rule("blocks.{n}.mlp.fc2.{p}", _LAYER + "output.dense.{p}"),
        Rule("norm.{p}", "layernorm.{p}"),
        Rule("mask_token", ()),
        Rule("lm_head.{p}", ()),
        Rule((), "embeddings.mask_token"),
        Rule((), "pooler.dense.{p}"),
    ),
)
"""`ViTModel`: the student's network exactly with `layer_norm_eps=1e-6`, but for the key's bias, which
changes nothing."""
