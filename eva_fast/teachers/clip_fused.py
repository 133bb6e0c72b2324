"""The CLIP tower through the fused layers: `ClipTower.forward`'s numbers in fewer passes over memory.

The patch convolution is a GEMM over patch rows; blocks are the branches of `eva_fast.layers`, where
every residual addition is part of the next norm; the last block computes queries, projection and
MLP of the wanted patches only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eva_fast.layers.attention import AttentionWeights, attention_branch
from eva_fast.layers.linear import Matrix
from eva_fast.layers.mlp import MlpWeights, mlp_branch
from eva_fast.layers.projection import projection_branch
from eva_fast.layers.stream import Stream, leaving
from eva_fast.ops.add_layer_norm import add_layer_norm
from eva_fast.ops.embed_tokens import embed_tokens
from eva_fast.ops.linear import linear


def tower_features(tower: Any, rows: Tensor, index: Tensor | None, with_cls: bool) -> Tensor:
    """Features [B,K,C] of the patches index [B,K], or of all, from patch rows [B,N,3 P P]. with_cls:
    where all are wanted, the class token's are too, in front.

    tower: a `ClipTower` whose parameters have the dtype of `rows`. No gradients.
    """
    cls, positions = tower.class_embedding, tower.positional_embedding
    patches = linear(rows, tower.conv1.weight.flatten(1))
    x = embed_tokens(patches, None, cls, cls, positions)
    if tower.config.ln_pre:
        x = _normalised(Stream(x), tower.ln_pre)
    wanted = None if with_cls and index is None else _token_rows(x, index)
    stream = Stream(x)
    *blocks, last = tower.transformer.resblocks
    for block in blocks:
        stream = block(stream)
    stream = last(stream, wanted)
    norm = tower.ln_post
    if tower.proj is None:
        return _normalised(stream, norm)
    out = projection_branch(stream, norm.weight, norm.bias, Matrix(tower.proj.t()), None, norm.eps)
    return out.view(len(x), -1, out.shape[-1])


def _token_rows(x: Tensor, index: Tensor | None) -> Tensor:
    """int32 [B,K]: the rows of x [B,T,D] that hold the patches index [B,K], or all patches."""
    if index is None:
        return torch.arange(1, x.shape[1], dtype=torch.int32, device=x.device).repeat(len(x), 1)
    return index.to(torch.int32) + 1


def _normalised(stream: Stream, norm: Any) -> Tensor:
    return add_layer_norm(*stream, norm.weight, norm.bias, norm.eps)[1]


def block_stream(block: Any, stream: Stream, tokens: Tensor | None) -> Stream:
    """A block of the tower, of the rows `tokens` int32 [B,K] alone where they are given."""
    attn, mlp = block.attn, block.mlp
    attention_weights = AttentionWeights(
        norm_weight=block.ln_1.weight,
        norm_bias=block.ln_1.bias,
        qkv=Matrix(attn.in_proj_weight),
        q_bias=None,
        v_bias=None,
        packed_bias=attn.in_proj_bias,
        proj=Matrix(attn.out_proj.weight),
        proj_bias=attn.out_proj.bias,
        num_heads=attn.heads,
        eps=block.ln_1.eps,
    )
    mlp_weights = MlpWeights(
        norm_weight=block.ln_2.weight,
        norm_bias=block.ln_2.bias,
        fc1=Matrix(mlp.c_fc.weight),
        fc1_bias=mlp.c_fc.bias,
        fc2=Matrix(mlp.c_proj.weight),
        fc2_bias=mlp.c_proj.bias,
        eps=block.ln_2.eps,
        kind="quick" if mlp.quick else "erf",
    )
    stream = mlp_branch(attention_branch(stream, attention_weights, tokens), mlp_weights)
    return leaving(block, stream)
