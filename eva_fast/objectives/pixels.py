"""Masked autoencoding of pixels (He et al., CVPR 2022, and its code): an encoder sees the visible
patches alone, a decoder of eight blocks paints the dropped ones.

Loss: the mean square error over the dropped patches, of normalised pixels; with `norm_pix` less their
patch's mean, over its deviation. No teacher. The encoder is handed on, in timm's names. No drop-path.
"""

from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.data import Batch, Field
from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
from eva_fast.layers.patch_embed import patch_rows
from eva_fast.model import MaeEncoder, MaskedAutoencoder
from eva_fast.objectives.base import Objective
from eva_fast.objectives.picture import GREY, as_bytes, save_columns
from eva_fast.objectives.setting import Setting
from eva_fast.objectives.visible import uniform_masks

DECODER_DEPTH = 8
EPS = 1e-6


class Pixels(Objective):
    """Pixels of dropped patches from the visible ones."""

    name = "pixels"
    capturable = True
    any_channels = True
    statistics = "imagenet"
    perfect = 0.0
    norm_pix = True

    def sample(self, setting: Setting) -> list[Field]:
        return [*super().sample(setting), *uniform_masks(setting)]

    def build(self, setting: Setting, teacher: nn.Module | None) -> MaskedAutoencoder:
        width = setting.vit.channels * setting.vit.patch_size**2
        self.norm_pix = setting.config.objective.norm_pix
        return setting.autoencoder(width, DECODER_DEPTH, self.statistics)

    def target(self, module: nn.Module, batch: Batch) -> Tensor:
        patch = cast(MaskedAutoencoder, module).sizes.patch_size
        rows = pixel_targets(batch.images, batch.mask, patch, norm_pix=self.norm_pix)
        return rows.flatten(0, 1)

    def target_width(self, module: nn.Module, teacher: nn.Module | None) -> int:
        return cast(MaskedAutoencoder, module).sizes.predict_dim

    def loss(
        self, module: nn.Module, batch: Batch, target: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        prediction = module(batch.images, batch.visible, batch.mask)
        return pixel_loss(prediction, cast(Tensor, target)), {}

    def constant_loss(self, constant: Tensor, rows: Tensor) -> Tensor:
        return F.mse_loss(constant.expand_as(rows), rows)

    def exported(self, module: nn.Module) -> MaeEncoder:
        return cast(MaskedAutoencoder, module).encoder

    def picture(
        self, path: Path, module: nn.Module, teacher: nn.Module | None, batch: Batch
    ) -> None:
        """Images, their visible patches, and these with the dropped ones as they are painted. With
        `norm_pix` a patch's own mean and deviation are put back: what is predicted is its structure."""
        network = cast(MaskedAutoencoder, module)
        patch, images = network.sizes.patch_size, batch.images
        every = torch.arange(network.sizes.num_patches, device=images.device, dtype=torch.int32)
        channels = images.shape[1]
        true = pixel_targets(images, every.expand(len(images), -1), patch, norm_pix=False)
        painted = network(images, batch.visible).float()
        if self.norm_pix:
            painted = painted * _deviation(true) + true.mean(-1, keepdim=True)
        mask = torch.zeros(true.shape[:2], dtype=torch.bool, device=images.device)
        mask = mask.scatter(1, batch.mask.long(), True)[..., None]
        shown = _as_images(torch.where(mask, painted, true), patch, channels, network.grid)
        hidden = _as_images(mask.expand_as(true).float(), patch, channels, network.grid)[:, :1] > 0
        if images.dtype == torch.uint8:
            shown = _unnormalised(shown)
        else:  # each channel from its darkest to its brightest, of the images alike
            images, shown = as_bytes(images, shown, of=images)
        grey = images.new_tensor(GREY).view(3, 1, 1)
        visible = torch.where(hidden.to(images.device), grey, images)
        save_columns(path, {"image": images, "visible": visible, "reconstruction": shown})


def pixel_targets(images: Tensor, patches: Tensor, patch: int, *, norm_pix: bool) -> Tensor:
    """What the decoder paints, float32 [B,K,C P P] in (row, column, channel) order, of the patches int32
    [B,K]; images are uint8, which ImageNet's statistics normalise, or floats normalised already."""
    rows = patch_rows(images, patch, torch.float32, IMAGENET_MEAN, IMAGENET_STD, patches)
    rows = rows.unflatten(-1, (images.shape[1], -1)).transpose(-1, -2).flatten(-2)
    return (rows - rows.mean(-1, keepdim=True)) / _deviation(rows) if norm_pix else rows


def pixel_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over dropped patches of the mean square over a patch, float32 scalar. prediction [M,C P P],
    target of as many numbers."""
    return F.mse_loss(prediction.float(), target.view(prediction.shape))


def _deviation(rows: Tensor) -> Tensor:
    """sqrt(unbiased variance + eps) of each patch."""
    return (rows.var(-1, keepdim=True) + EPS).sqrt()


def _as_images(rows: Tensor, patch: int, channels: int, grid: tuple[int, int]) -> Tensor:
    """[B,C,H,W] of rows [B,N,C P P]."""
    tiles = rows.unflatten(1, grid).unflatten(3, (patch, patch, channels))  # b i j u v c
    return tiles.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def _unnormalised(images: Tensor) -> Tensor:
    """uint8 [B,3,H,W] of what ImageNet's statistics normalised."""
    mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images * std + mean).clamp(0, 1) * 255).round().byte()
