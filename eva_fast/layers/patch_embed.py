"""From images to the first block's tokens: a GEMM over patch rows, then one op for the rest."""

import torch
from torch import Tensor, nn

from eva_fast.layers.inputs import CLIP_MEAN, CLIP_STD, Channels, take_rows
from eva_fast.layers.linear import RoundedWeight
from eva_fast.ops.embed_kept import embed_kept
from eva_fast.ops.embed_tokens import embed_tokens
from eva_fast.ops.linear import linear
from eva_fast.ops.patchify import aligned_columns, patchify


class _ShareOfGradient(torch.autograd.Function):
    """The same numbers; `share` of their gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.share, None


def share_of_gradient(x: Tensor, share: float) -> Tensor:
    """x, to which only `share` of the gradient goes: share x + (1 - share) stop(x), not rounded."""
    return x if share == 1 else _ShareOfGradient.apply(x, share)


class PatchConv(RoundedWeight, nn.Conv2d):
    """The weight and bias of a convolution whose kernel is its stride, read as a GEMM's."""


class PatchEmbed(nn.Module):
    """Patch convolution, mask token, CLS and positions: [B, C, H, W] -> [B, N + 1, D].

    grad_share: of the gradient, what weight and bias of the convolution get.
    """

    def __init__(
        self,
        patch_size: int,
        embed_dim: int,
        mean: Channels = CLIP_MEAN,
        std: Channels = CLIP_STD,
        channels: int = 3,
        grad_share: float = 1.0,
    ):
        super().__init__()
        self.proj = PatchConv(channels, embed_dim, patch_size, patch_size)
        self.mean, self.std = mean, std
        self.grad_share = grad_share

    def forward(
        self,
        images: Tensor,
        masked: Tensor | None,
        mask_token: Tensor,
        cls_token: Tensor,
        pos_embed: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """Tokens [B, N + 1, D] in `dtype`.

        images: uint8, normalised here by `mean` and `std`, or floats normalised already. masked: int32
        [B, K] patches to replace by `mask_token`, or None. mask_token, cls_token [1, 1, D], pos_embed
        [1, N + 1, D] or None: no positions.
        """
        patch = self.proj.kernel_size[0]
        rows = patch_rows(images.contiguous(), patch, dtype, self.mean, self.std)
        weight, copy = self.proj.matrix(dtype)
        bias = self.proj.bias
        assert bias is not None
        weight = share_of_gradient(weight, self.grad_share)
        patches = linear(rows, weight, None, copy)
        if pos_embed is None:
            pos_embed = cls_token.new_zeros(1, patches.shape[1] + 1, patches.shape[2])
        return embed_tokens(
            patches,
            masked,
            mask_token.flatten(),
            cls_token.flatten(),
            pos_embed.flatten(0, 1),
            share_of_gradient(bias, self.grad_share),
        )


class KeptPatchEmbed(nn.Module):
    """Patch convolution, CLS and fixed positions of the patches that are kept, the gather before the
    GEMM: [B, C, H, W] -> [B, K + 1, D]."""

    def __init__(
        self, patch_size: int, embed_dim: int, mean: Channels, std: Channels, channels: int = 3
    ):
        super().__init__()
        self.proj = PatchConv(channels, embed_dim, patch_size, patch_size)
        self.mean, self.std = mean, std

    def forward(
        self,
        images: Tensor,
        kept: Tensor | None,
        cls_token: Tensor,
        pos_embed: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        """Tokens [B, K + 1, D] in `dtype`.

        images: uint8, normalised here by `mean` and `std`, or floats normalised already. kept: int32
        [B, K] patches, or None: all. cls_token [1, 1, D], pos_embed [1, N + 1, D], a constant.
        """
        patch = self.proj.kernel_size[0]
        rows = patch_rows(images.contiguous(), patch, dtype, self.mean, self.std, kept)
        weight, copy = self.proj.matrix(dtype)
        patches = linear(rows, weight, None, copy)
        cls, positions, bias = cls_token.flatten(), pos_embed.flatten(0, 1), self.proj.bias
        if kept is None:
            return embed_tokens(patches, None, cls, cls, positions, bias)
        return embed_kept(patches, kept, cls, positions, bias)


def patch_rows(
    images: Tensor,
    patch: int,
    dtype: torch.dtype,
    mean: Channels = CLIP_MEAN,
    std: Channels = CLIP_STD,
    kept: Tensor | None = None,
) -> Tensor:
    """[B, N, C P P] in `dtype`, in the order of the convolution's weight: of uint8 images, which
    `mean` and `std` normalise, or of floats that are normalised already. kept: int32 [B, K], patches
    of which alone the rows are wanted. Those of uint8 images may end in zeros (`aligned_columns`)."""
    if images.dtype == torch.uint8:
        columns = aligned_columns(patch, dtype, images.device.type)
        return patchify(images, patch, mean, std, dtype, kept, columns)
    batch, channels, height, width = images.shape
    tiles = images.view(batch, channels, height // patch, patch, width // patch, patch)
    rows = tiles.permute(0, 2, 4, 1, 3, 5).to(dtype).reshape(batch, -1, channels * patch**2)
    return rows if kept is None else take_rows(rows, kept)
