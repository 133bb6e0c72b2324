"""Layers of vision transformers whose `forward` is the fused path, and the same in plain PyTorch.

    stream       what flows through the blocks: a residual and a branch that is yet to be added
    products     the products of a branch, in the compute dtype or in 8 bits
    fp8          the 8-bit weights of blocks
    linear       a weight and its copy in the compute dtype
    add_norm     the pending addition and the norm, the start of every branch
    attention    norm, qkv, attention, projection       masked_tail: of some tokens only
    mlp          norm, fc1, GELU, fc2
    layer_scale  gamma, folded into proj and fc2     rel_pos: attention's relative position bias
    block        the two, with drop-path             block_branch: both as one function
    recompute    activation checkpointing
    patch_embed  images to tokens
    window       Swin's windows                      window_attention: cosine attention in them
    swin         Swin V2's stages                    post_norm, unit_heads: parts of their branches
    projection   the final norm and a Linear
    precision    the dtype that products run in         sharding: what FSDP2 asks of them
    inputs       images and masks as they are accepted
    plain        the reference of all of them        plain_swin: of Swin's

They use `eva_fast.ops` alone. Parameters have the names of the official code.
"""

from eva_fast.layers.add_norm import LayerNorm
from eva_fast.layers.attention import Attention
from eva_fast.layers.block import Block
from eva_fast.layers.fp8 import keep_largest, use_fp8
from eva_fast.layers.linear import Linear, drop_copies, keep_copies
from eva_fast.layers.mlp import Mlp
from eva_fast.layers.patch_embed import KeptPatchEmbed, PatchEmbed
from eva_fast.layers.precision import Precision
from eva_fast.layers.projection import PointwiseProjection, Projection
from eva_fast.layers.rel_pos import DecoupledRelativePositionBias, RelativePositionBias
from eva_fast.layers.stream import Stream

__all__ = [
    "Attention",
    "Block",
    "DecoupledRelativePositionBias",
    "KeptPatchEmbed",
    "LayerNorm",
    "Linear",
    "Mlp",
    "PatchEmbed",
    "PointwiseProjection",
    "Precision",
    "Projection",
    "RelativePositionBias",
    "Stream",
    "drop_copies",
    "keep_copies",
    "keep_largest",
    "use_fp8",
]
