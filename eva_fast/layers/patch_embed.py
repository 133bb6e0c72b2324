"""From images to the first block's tokens: a GEMM over patch rows, then one op for the rest."""

import torch
from torch import Tensor, nn

from eva_fast.layers.inputs import CLIP_MEAN, CLIP_STD
from eva_fast.layers.linear import RoundedWeight
from eva_fast.ops.embed_tokens import embed_tokens
from eva_fast.ops.linear import linear
from eva_fast.ops.patchify import patchify


class PatchConv(RoundedWeight, nn.Conv2d):
    """The weight and bias of a convolution whose kernel is its stride, read as a GEMM's."""


class PatchEmbed(nn.Module):
    """Patch convolution, mask token, CLS and positions: [B, 3, H, W] -> [B, N + 1, D]."""

    def __init__(self, patch_size: int, embed_dim: int):
        super().__init__()
        self.proj = PatchConv(3, embed_dim, patch_size, patch_size)

    def forward(
        self,
        images: Tensor,
        masked: Tensor | None,
        mask_token: Tensor,
        cls_token: Tensor,
        pos_embed: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        """Tokens [B, N + 1, D] in `dtype`.

        images: uint8, normalised here, or floats normalised already. masked: int32 [B, K] patches
        to replace by `mask_token`, or None. mask_token, cls_token [1, 1, D], pos_embed [1, N + 1, D].
        """
        rows = patch_rows(images.contiguous(), self.proj.kernel_size[0], dtype)
        weight, copy = self.proj.matrix(dtype)
        patches = linear(rows, weight, None, copy)
        return embed_tokens(
            patches,
            masked,
            mask_token.flatten(),
            cls_token.flatten(),
            pos_embed.flatten(0, 1),
            self.proj.bias,
        )


def patch_rows(images: Tensor, patch: int, dtype: torch.dtype) -> Tensor:
    """[B, N, 3 P P] in `dtype`, in the order of the convolution's weight: of uint8 images, which
    CLIP's statistics normalise, or of floats that are normalised already."""
    if images.dtype == torch.uint8:
        return patchify(images, patch, CLIP_MEAN, CLIP_STD, dtype)
    batch, channels, height, width = images.shape
    tiles = images.view(batch, channels, height // patch, patch, width // patch, patch)
    rows = tiles.permute(0, 2, 4, 1, 3, 5).to(dtype)
    return rows.reshape(batch, -1, channels * patch**2)
