"""timm: `eva_*` and `vit_*` models for the student, `vit_*_clip_*` for CLIP image towers."""

from __future__ import annotations

import logging

import torch

from eva_fast.weights.naming import official
from eva_fast.weights.naming.table import KEYLESS, LEADING, VECTOR, Form, Naming, Parts, Rule, same

logger = logging.getLogger(__name__)

EVA = Naming(
    "timm",
    probes=official.EVA.probes,
    rules=(
        *same(*official.STEM), *official.RELATIVE, *official.BLOCK, *same("norm.{p}"),
        *official.NO_PRETRAINING, official.CLASSIFIER,
    ),
)  # fmt: skip
"""`eva_*` with `global_pool` "" or "token": the last norm is of all tokens."""

EVA_POOLED = Naming("timm", official.FINE_TUNED.probes, official.FINE_TUNED.rules)
"""`eva_*` as timm builds it, with `global_pool="avg"`: the last norm, `fc_norm`, is after the mean."""


PACKED = Form(
    lambda parts: KEYLESS.read(parts[0].chunk(3) if parts[0] is not None else ()),
    lambda parts: (torch.cat([t for t in KEYLESS.write(parts) if t is not None]),),
)
"""Theirs is one bias of query, key and value, ours those of query and value."""

VIT = Naming(
    "timm",
    probes=("pos_embed", "blocks.0.attn.qkv.bias", "cls_token", "norm.weight"),
    rules=(
        Rule(
            ("blocks.{n}.attn.q_bias", "blocks.{n}.attn.v_bias"),
            "blocks.{n}.attn.qkv.bias",
            PACKED,
        ),
        *EVA.rules,
    ),
)
"""`vit_*` and `deit_*` with a class token, as MAE's and AugReg's: the student's network exactly, but
for the key's bias, which changes nothing."""


VIT_POOLED = Naming(
    "timm",
    probes=("pos_embed", "blocks.0.attn.qkv.bias", "cls_token", "fc_norm.weight"),
    rules=(
        Rule("norm.{p}", "fc_norm.{p}"),
        *(rule for rule in VIT.rules if rule.ours != "norm.{p}"),
    ),
)
"""The same with `global_pool="avg"`, as MAE's fine-tuned models and the official code's EVA-L: the last
norm, `fc_norm`, is after the mean."""


CLASSES = (1000, 1001, 10450, 11221, 11821, 21841, 21842, 21843)
"""Sizes of the usual classifiers (ImageNet-1k, -12k, -21k, with and without background): no CLIP
projects to so many dimensions, and timm's models have a fresh head of 1000, its bias 0, by default."""


def _read_head(parts: Parts) -> Parts:
    weight, bias = parts
    if weight is None:
        return (None,)
    if len(weight) in CLASSES or (bias is not None and bias.any()):
        logger.warning(
            "head.weight %s is a classifier's, no projection of CLIP's: the features before it, of "
            "width %d, are used", list(weight.shape), weight.shape[1],
        )  # fmt: skip
        return (None,)
    return (weight.T,)


def _write_head(parts: Parts) -> Parts:
    (proj,) = parts
    assert proj is not None
    return proj.T, proj.new_zeros(proj.shape[1])


CLIP = Naming(
    "timm",
    probes=("blocks.0.attn.qkv.weight", "norm_pre.weight"),
    rules=(
        Rule("class_embedding", "cls_token", VECTOR),
        Rule("positional_embedding", "pos_embed", LEADING),
        Rule("conv1.weight", "patch_embed.proj.weight"),
        Rule("ln_pre.{p}", "norm_pre.{p}"),
        Rule("transformer.resblocks.{n}.ln_1.{p}", "blocks.{n}.norm1.{p}"),
        Rule("transformer.resblocks.{n}.attn.in_proj_{p}", "blocks.{n}.attn.qkv.{p}"),
        Rule("transformer.resblocks.{n}.attn.out_proj.{p}", "blocks.{n}.attn.proj.{p}"),
        Rule("transformer.resblocks.{n}.ln_2.{p}", "blocks.{n}.norm2.{p}"),
        Rule("transformer.resblocks.{n}.mlp.c_fc.{p}", "blocks.{n}.mlp.fc1.{p}"),
        Rule("transformer.resblocks.{n}.mlp.c_proj.{p}", "blocks.{n}.mlp.fc2.{p}"),
        Rule("ln_post.{p}", "norm.{p}"),
        # CLIP's projection is a head without bias (or a zero one). A head with a bias, or with as
        # many rows as ImageNet has classes, is a classifier; its rows are no features.
        Rule("proj", ("head.weight", "head.bias"), Form(_read_head, _write_head), ("head.bias",)),
    ),
)
"""`vit_*_clip_*`, `vit_*_clip_quickgelu_*`."""
