"""A ViT of another library as EVA's student: a mask token stands for masked patches, a head predicts.

As in EVA's own student (`model/vit.py`) the token is put behind the patch embedding and before
positions, classes and registers are added; all tokens pass through all blocks, and the head sees the
masked ones after the last norm. The network's forward is the library's: only what `patch_embed` hands
on is exchanged.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.layers.inputs import mask_indices, take_rows
from eva_fast.model.init import STD
from eva_fast.model.networks.backbone import Backbone
from eva_fast.ops.negative_cosine import negative_cosine


class MaskedBackbone(nn.Module):
    """Predictions of a teacher's features of masked patches.

    `images` and `mask` are as for `EvaViT`. N patches, T tokens with those in front, M masked rows.

    Args:
        encoder: a network whose `sizes.can_mask`.
        predict_dim: the teacher's width C.
        fused: whether the loss is the fused op, or plain PyTorch.
    """

    def __init__(self, encoder: Backbone, predict_dim: int, fused: bool = True):
        super().__init__()
        self.encoder, self.fused = encoder, fused
        self.sizes, self.grid = encoder.sizes, encoder.grid
        self.prefix_tokens, self.precision = encoder.prefix_tokens, encoder.precision
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.sizes.embed_dim))
        self.lm_head = nn.Linear(encoder.width, predict_dim)
        if not self.mask_token.is_meta:
            for matrix in (self.mask_token, self.lm_head.weight):
                nn.init.trunc_normal_(matrix, std=STD, a=-STD, b=STD)
            nn.init.zeros_(self.lm_head.bias)

    def forward_features(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """All tokens after the last norm, [B,T,D]."""
        with self.precision.region(images.device.type):
            return self._tokens(images, None if mask is None else self._masked(mask))

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Predictions of the masked patches, [M,C], row-major over (image, patch)."""
        masked = self._masked(mask)
        with self.precision.region(images.device.type):
            rows = take_rows(self._tokens(images, masked), masked + self.prefix_tokens)
            return self.lm_head(rows.flatten(0, 1))

    def loss(self, images: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """-mean cos(prediction, target) over all masked patches, float32 scalar; target [M,C]."""
        prediction = self(images, mask)
        if target.shape != prediction.shape:
            raise ValueError(
                f"target has shape {tuple(target.shape)}, the masked patches need "
                f"{tuple(prediction.shape)} (masked rows, teacher dimension)"
            )
        if self.fused:
            return negative_cosine(prediction, target.detach())
        wide = torch.float64 if prediction.dtype == torch.float64 else torch.float32
        return -F.cosine_similarity(prediction.to(wide), target.to(wide), dim=-1).mean()

    def set_grad_checkpointing(self, enable: bool = True, share: float = 1.0) -> None:
        """`Backbone.set_grad_checkpointing`."""
        self.encoder.set_grad_checkpointing(enable, share)

    def _masked(self, mask: Tensor) -> Tensor:
        return mask_indices(mask, self.sizes.num_patches).to(torch.int32)

    def _tokens(self, images: Tensor, masked: Tensor | None) -> Tensor:
        if masked is None:
            return self.encoder.all_tokens(images)
        with self._embedding(masked):
            return self.encoder.all_tokens(images)

    @contextmanager
    def _embedding(self, masked: Tensor) -> Iterator[None]:
        """`patch_embed` gives the mask token for masked patches meanwhile: int32 [B,K]. Its `forward` is
        exchanged rather than hooked, since steps with hooks are not captured as graphs."""
        embed: Any = self.encoder.network.patch_embed
        before = vars(embed).get("forward")
        forward = embed.forward

        def with_masks(*inputs: Any, **named: Any) -> Tensor:
            patches = forward(*inputs, **named)
            flat = patches if patches.ndim == 3 else patches.flatten(1, 2)
            rows = masked.long().unsqueeze(-1).expand(-1, -1, flat.shape[-1])
            flat = flat.scatter(1, rows, self.mask_token.to(flat.dtype).expand_as(rows))
            return flat.view(patches.shape)

        embed.forward = with_masks
        try:
            yield
        finally:
            del embed.forward
            if before is not None:
                embed.forward = before
