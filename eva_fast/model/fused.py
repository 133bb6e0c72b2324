"""The student's step through the fused ops: same parameters, same numbers, less work and memory.

What differs from the plain formulation (`model/vit.py`):
- blocks are `attention_branch` and `mlp_branch` (see there), with their own backward;
- uint8 images become normalised patch rows for one GEMM; mask token, CLS, positions and the patch
  bias are one op;
- where only predictions are wanted, the last block computes queries, projection and MLP of the
  masked tokens alone, and the head sees nothing else;
- with 16-bit arithmetic the master weights stay float32 and each matrix is rounded once a step.
Drop-path draws the same random numbers as the plain blocks, in the same order.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from eva_fast.model import head
from eva_fast.model.branches import (
    AttentionWeights,
    Matrix,
    MlpWeights,
    Stream,
    attention_branch,
    mlp_branch,
)
from eva_fast.model.inputs import CLIP_MEAN, CLIP_STD, mask_indices
from eva_fast.ops.add_layer_norm import add_layer_norm
from eva_fast.ops.embed_tokens import embed_tokens
from eva_fast.ops.linear import linear
from eva_fast.ops.patchify import patchify


def matrices(model) -> Iterator[Tensor]:
    """The parameters that GEMMs read: those that need a copy in the compute dtype."""
    yield model.patch_embed.proj.weight
    for block in model.blocks:
        yield from (block.attn.qkv.weight, block.attn.proj.weight)
        yield from (block.mlp.fc1.weight, block.mlp.fc2.weight)
    yield model.lm_head.weight


def compute_dtype(model, device_type: str) -> torch.dtype:
    """What the GEMMs run in: autocast's dtype where that is on, else the model's choice; the
    parameters' own dtype where they are not float32."""
    parameters = model.pos_embed.dtype
    if parameters != torch.float32:
        return parameters
    if _autocast_on(device_type):
        return torch.get_autocast_dtype(device_type)
    return model.compute_dtype


def _autocast_on(device_type: str) -> bool:
    # "meta" has no autocast; torch.amp.is_autocast_available cannot be traced before PyTorch 2.14
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def _chosen_dtypes(device_type: str):
    """Keeps autocast, which only chose the compute dtype, away from the ops."""
    if _autocast_on(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def weight_copies(model, dtype: torch.dtype) -> dict[Tensor, Tensor]:
    """{float32 matrix: itself rounded to `dtype`}; empty where nothing needs rounding.

    An optimiser that writes the copies itself (`FusedAdamW(copies=...)`) is handed
    `model.compute_copies`, set by `keep_copies`; else they are made anew here.
    """
    wanted = [p for p in matrices(model) if p.dtype != dtype]
    kept = getattr(model, "compute_copies", None)
    if kept and wanted and kept[wanted[0]].dtype == dtype:
        return kept
    return {p: p.detach().to(dtype) for p in wanted}


def keep_copies(model, dtype: torch.dtype) -> dict[Tensor, Tensor]:
    """Makes the copies once and keeps them as `model.compute_copies`. From then on whoever changes
    a parameter writes its copy too, as `FusedAdamW(copies=keep_copies(model, dtype))` does."""
    model.compute_copies = {p: p.detach().to(dtype) for p in matrices(model) if p.dtype != dtype}
    return model.compute_copies


def refresh_copies(model) -> None:
    """Rounds the kept copies anew, after the parameters were loaded from somewhere."""
    for parameter, copy in getattr(model, "compute_copies", {}).items():
        copy.copy_(parameter.detach())


@torch.no_grad()
def _packed_biases(model, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(q_bias, 0, v_bias) of every block, all made by one concatenation."""
    attentions = [block.attn for block in model.blocks]
    zeros = torch.zeros_like(attentions[0].q_bias)
    parts = [part for attn in attentions for part in (attn.q_bias, zeros, attn.v_bias)]
    return torch.cat(parts).to(dtype).chunk(len(attentions))


class _Weights:
    """The parameters of a model as the branches take them, for one step."""

    def __init__(self, model, dtype: torch.dtype):
        self.copies = weight_copies(model, dtype)
        self.packed = _packed_biases(model, dtype)

    def matrix(self, weight: Tensor) -> Matrix:
        return Matrix(weight, self.copies.get(weight))

    def attention(self, block, index: int) -> AttentionWeights:
        attn = block.attn
        return AttentionWeights(
            norm_weight=block.norm1.weight,
            norm_bias=block.norm1.bias,
            qkv=self.matrix(attn.qkv.weight),
            q_bias=attn.q_bias,
            v_bias=attn.v_bias,
            packed_bias=self.packed[index],
            proj=self.matrix(attn.proj.weight),
            proj_bias=attn.proj.bias,
            num_heads=attn.num_heads,
            eps=block.norm1.eps,
        )

    def mlp(self, block) -> MlpWeights:
        return MlpWeights(
            norm_weight=block.norm2.weight,
            norm_bias=block.norm2.bias,
            fc1=self.matrix(block.mlp.fc1.weight),
            fc1_bias=block.mlp.fc1.bias,
            fc2=self.matrix(block.mlp.fc2.weight),
            fc2_bias=block.mlp.fc2.bias,
            eps=block.norm2.eps,
        )


def _patch_rows(images: Tensor, patch: int, dtype: torch.dtype) -> Tensor:
    """[B, N, 3 P P] of uint8 images, normalised, or of floats that are normalised already."""
    if images.dtype == torch.uint8:
        return patchify(images, patch, CLIP_MEAN, CLIP_STD, dtype)
    batch, channels, height, width = images.shape
    tiles = images.view(batch, channels, height // patch, patch, width // patch, patch)
    rows = tiles.permute(0, 2, 4, 1, 3, 5).to(dtype)
    return rows.reshape(batch, -1, channels * patch**2)


def _embed(model, weights: _Weights, images: Tensor, mask: Tensor | None, dtype) -> Tensor:
    """Tokens [B, T, D] before the first block."""
    model._check_images(images)
    proj = model.patch_embed.proj
    copy = weights.copies.get(proj.weight)
    patches = linear(
        _patch_rows(images.contiguous(), model.sizes.patch_size, dtype),
        proj.weight.flatten(1),
        None,
        None if copy is None else copy.flatten(1),
    )
    return embed_tokens(
        patches,
        mask,
        model.mask_token.flatten(),
        model.cls_token.flatten(),
        model.pos_embed.flatten(0, 1),
        proj.bias,
    )


def _indices(model, mask: Tensor) -> Tensor:
    return mask_indices(mask, model.sizes.num_patches).to(torch.int32)


def _drop_path(rate: float, training: bool, x: Tensor) -> Tensor | None:
    from eva_fast.model.vit import drop_path_scale

    return drop_path_scale(rate, training, x)


def _run_blocks(model, weights: _Weights, x: Tensor, trimmed: Tensor | None) -> Stream:
    """All blocks; with `trimmed`, the mask, the last one gives its tokens only."""
    stream = Stream(x)
    last = len(model.blocks) - 1
    for i, block in enumerate(model.blocks):
        asked = trimmed if i == last else None
        for half in ("attention", "mlp"):
            if half == "attention":
                stream = attention_branch(stream, weights.attention(block, i), asked)
            else:
                stream = mlp_branch(stream, weights.mlp(block))
            scale = _drop_path(block.drop_path, model.training, stream.x)
            stream = stream._replace(scale=scale)
    return stream


def forward_features(model, images: Tensor, mask: Tensor | None = None) -> Tensor:
    """All tokens after the final norm, [B, T, D]. Arguments as `EvaViT.forward_features`."""
    device = images.device.type
    dtype = compute_dtype(model, device)
    indices = None if mask is None else _indices(model, mask)
    with _chosen_dtypes(device):
        weights = _Weights(model, dtype)
        stream = _run_blocks(model, weights, _embed(model, weights, images, indices, dtype), None)
        return add_layer_norm(*stream, model.norm.weight, model.norm.bias, model.norm.eps)[1]


def _masked_tokens(model, images: Tensor, mask: Tensor, dtype) -> tuple[Stream, Tensor | None]:
    """(residual stream of the masked tokens [B, K, D], the head's weight in `dtype` if copied)."""
    indices = _indices(model, mask)
    weights = _Weights(model, dtype)
    x = _embed(model, weights, images, indices, dtype)
    return _run_blocks(model, weights, x, indices), weights.copies.get(model.lm_head.weight)


def predict(model, images: Tensor, mask: Tensor) -> Tensor:
    """Predictions of the masked patches, [M, C]. Arguments as `EvaViT.forward`."""
    device = images.device.type
    dtype = compute_dtype(model, device)
    with _chosen_dtypes(device):
        return head.project(model, *_masked_tokens(model, images, mask, dtype))


def loss(model, images: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    """-mean cos(prediction, target), a scalar. Arguments as `EvaViT.loss`."""
    device = images.device.type
    dtype = compute_dtype(model, device)
    with _chosen_dtypes(device):
        stream, copy = _masked_tokens(model, images, mask, dtype)
        expected = (stream.x.shape[:-1].numel(), model.lm_head.out_features)
        if target.shape != expected:
            raise ValueError(
                f"target has shape {tuple(target.shape)}, the masked patches need {expected} "
                "(masked rows, teacher dimension)"
            )
        if target.dtype == torch.float64 and stream.x.dtype != torch.float64:
            target = target.float()
        return head.loss(model, stream, copy, target.detach())
