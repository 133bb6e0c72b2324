"""The CLIP tower through the fused ops: `ClipTower.forward`'s numbers in fewer passes over memory.

The patch convolution is a GEMM over patch rows, every residual addition is part of the next norm
(with the bias of the GEMM before it), attention never writes its scores, and the last block
computes queries, projection and MLP of the wanted patches only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eva_fast.ops.add_layer_norm import add_layer_norm_forward
from eva_fast.ops.bias_gelu import bias_gelu_forward
from eva_fast.ops.embed_tokens import embed_tokens_forward
from eva_fast.ops.linear import matmul
from eva_fast.ops.masked_gather import masked_gather_forward
from eva_fast.ops.packed_attention import packed_attention_forward

Pending = tuple[Tensor | None, Tensor | None]
"""A branch that is still to be added to the residual stream, and the bias of its last GEMM."""


def patch_rows(images: Tensor, patch: int) -> Tensor:
    """Normalised images [B,3,H,W] as rows [B,N,3 P P], in the order of the convolution's weight."""
    batch, channels, height, width = images.shape
    tiles = images.view(batch, channels, height // patch, patch, width // patch, patch)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch**2)


def tower_features(tower: Any, rows: Tensor, index: Tensor | None) -> Tensor:
    """Features [B,K,C] of the patches index [B,K], or of all, from patch rows [B,N,3 P P].

    tower: a `ClipTower` whose parameters have the dtype of `rows`. No gradients.
    """
    config, cls = tower.config, tower.class_embedding
    patches = _product(rows, tower.conv1.weight.flatten(1))
    x = embed_tokens_forward(patches, None, cls, cls, tower.positional_embedding)
    if config.ln_pre:
        x = _norm(x, (None, None), tower.ln_pre)[1]
    pending: Pending = (None, None)
    mask = None if index is None else index.to(torch.int32)
    last = len(tower.transformer.resblocks) - 1
    for i, block in enumerate(tower.transformer.resblocks):
        x, y = _norm(x, pending, block.ln_1)
        if i < last:
            pending = _attention(block.attn, y, y)
        else:
            x = _patches(x, mask)
            pending = _attention(block.attn, y, _patches(y, mask))
        x, y = _norm(x, pending, block.ln_2)
        pending = _mlp(block.mlp, y)
    out = _norm(x, pending, tower.ln_post)[1]
    return out if tower.proj is None else _product(out, tower.proj.t())


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K] weight^T + bias, with weight [N, K]."""
    return matmul(x.flatten(0, -2), weight.t(), bias).view(*x.shape[:-1], -1)


def _norm(x: Tensor, pending: Pending, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """(x + pending, its LayerNorm)."""
    return add_layer_norm_forward(x, *pending, None, norm.weight, norm.bias, norm.eps)[:2]


def _patches(x: Tensor, mask: Tensor | None) -> Tensor:
    """[B,T,D] -> [B,K,D]: the patches that `mask` names, or all; without the class token."""
    if mask is None:
        return x[:, 1:].contiguous()
    return masked_gather_forward(x, mask).view(*mask.shape, -1)


def _attention(attn: Any, y: Tensor, queries: Tensor) -> Pending:
    width, heads = y.shape[-1], attn.heads
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    q = None
    if queries is not y:
        q = _product(queries, weight[:width], bias[:width]).unflatten(-1, (heads, -1))
        weight, bias = weight[width:], bias[width:]
    packed = _product(y, weight, bias).view(*y.shape[:2], -1, heads, width // heads)
    out, _ = packed_attention_forward(q, packed, (width // heads) ** -0.5)
    return _product(out.flatten(2), attn.out_proj.weight), attn.out_proj.bias


def _mlp(mlp: Any, y: Tensor) -> Pending:
    kind = "quick" if mlp.quick else "erf"
    g = bias_gelu_forward(_product(y, mlp.c_fc.weight), mlp.c_fc.bias, kind)
    return _product(g, mlp.c_proj.weight), mlp.c_proj.bias
