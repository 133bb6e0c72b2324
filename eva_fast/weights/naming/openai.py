"""OpenAI's CLIP (github.com/openai/CLIP): the image tower's own names."""

from __future__ import annotations

from eva_fast.weights.naming.table import Naming, Rule, same

CLIP = Naming(
    "openai",
    # A file has text blocks of the same names, but no class token beside them.
    probes=("transformer.resblocks.0.attn.in_proj_weight", "class_embedding"),
    prefix="visual.",
    rules=(
        *same(
            "class_embedding",
            "positional_embedding",
            "conv1.weight",
            "ln_pre.{p}",
            "transformer.resblocks.{n}.ln_1.{p}",
            "transformer.resblocks.{n}.attn.in_proj_{p}",
            "transformer.resblocks.{n}.attn.out_proj.{p}",
            "transformer.resblocks.{n}.ln_2.{p}",
            "transformer.resblocks.{n}.mlp.c_fc.{p}",
            "transformer.resblocks.{n}.mlp.c_proj.{p}",
            "ln_post.{p}",
            "proj",
        ),
        # What may lie beside a tower that has no prefix.
        Rule((), "text{rest}"),
        Rule((), "token_{rest}"),
        Rule((), "logit{rest}"),
    ),
)
"""The image tower of a CLIP model."""
