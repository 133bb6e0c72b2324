"""Feature Distillation's Swin V2 student: windows, shifts, cosine attention, norms after branches.

Module names are those of the official code (github.com/SwinTransformer/Feature-Distillation), so a
checkpoint is `state_dict()`. Source of the network: Liu et al. 2022, Swin Transformer V2.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from eva_fast.layers import Precision, plain, plain_swin, swin
from eva_fast.layers.recompute import spread
from eva_fast.layers.stream import Scales, drop_path_scales
from eva_fast.layers.window import Windows
from eva_fast.model.official import Official
from eva_fast.model.student import KERNELS
from eva_fast.model.swin_sizes import Stage, SwinSizes

STD = 0.02
FIRST_NORM_WEIGHT = 1e-5
"""Of the norms behind a block's branches: it begins close to the identity."""


class SwinStage(nn.Module):
    """Blocks of one width and, but in the last stage, the merge to the next."""

    def __init__(self, kit: Any, stage: Stage, following: Stage | None, hidden: int, rates: list):
        super().__init__()
        side, size = stage.windows.side, stage.windows.size
        self.blocks = nn.ModuleList(
            kit.Block(
                stage.dim, stage.num_heads, hidden, rate,
                Windows.fitting(side, size, shifted=i % 2 == 1),
            )
            for i, rate in enumerate(rates)
        )  # fmt: skip
        if following is not None:
            self.downsample = kit.PatchMerging(stage.dim, stage.windows, following.windows)
        else:
            self.downsample = None

    def forward(self, x: Tensor, scales: list[Scales] | None) -> Tensor:
        """[B, N, C] to the next stage's [B, N/4, 2C], or of the last stage to [B, N, C]. scales:
        drop-path's factors of each block, where they were drawn for all."""
        for i, block in enumerate(self.blocks):
            x = block(x) if scales is None else block(x, scales[i])
        return x if self.downsample is None else self.downsample(x)


class SwinV2(Official):
    """A Swin V2 without a head: `forward_features(images)` is [B, N, width], the last stage's tokens
    after the final norm, row-major.

    `images` are uint8 [B, 3, H, W] (normalised inside with ImageNet's mean and deviation) or floats
    already normalised.

    Args:
        sizes: shapes of the model.
        drop_path: rate of the last block; it grows linearly from 0 in the first, over all stages.
        compute_dtype: dtype of the arithmetic; parameters stay float32. Norm statistics, softmax,
            norms of q and k and the bias of distances are float32 whatever it is.
        kernels: "torch" builds it of the plain layers; anything else of the fused ones.
    """

    prefix_tokens = 0
    """Tokens in front of those of the image: it has no CLS."""

    def __init__(
        self,
        sizes: SwinSizes,
        drop_path: float = 0.0,
        compute_dtype: torch.dtype = torch.float32,
        kernels: str = "auto",
    ):
        super().__init__()
        if not 0.0 <= drop_path < 1.0:
            raise ValueError(f"drop_path must be at least 0 and below 1, got {drop_path}")
        if kernels not in KERNELS:
            raise ValueError(f"kernels must be auto, torch, native or triton, got {kernels!r}")
        self.sizes, self.grid = sizes, sizes.grid
        self.fused = kernels != "torch"
        kit: Any = swin if self.fused else plain_swin
        self.precision: Any = (Precision if self.fused else plain.Precision)(compute_dtype)
        stages, depth = sizes.stages, sizes.depth
        self.patch_embed = kit.PatchEmbed(sizes.patch_size, sizes.embed_dim, stages[0].windows)
        rates = iter([drop_path * i / max(depth - 1, 1) for i in range(depth)])
        self.layers = nn.ModuleList(
            SwinStage(
                kit, stage, following, sizes.mlp_ratio * stage.dim,
                [next(rates) for _ in range(stage.depth)],
            )
            for stage, following in zip(stages, (*stages[1:], None))
        )  # fmt: skip
        self.row_major = kit.RowMajor(stages[-1].windows, self.patch_embed.proj.weight.device)
        norm = swin.LayerNorm if self.fused else plain.LayerNorm
        self.norm = norm(sizes.width, eps=swin.LAYER_NORM_EPS)
        if not self.norm.weight.is_meta:
            init_weights(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last stage's tokens after the final norm, [B, N, width]."""
        with self.precision.region(images.device.type):
            return self.norm(self.tokens(images))

    def tokens(self, images: Tensor) -> Tensor:
        """The last stage's tokens before the final norm, [B, N, width], row-major."""
        side = self.sizes.img_size
        if images.ndim != 4 or images.shape[1:] != (3, side, side):
            raise ValueError(
                f"images must be [B,3,{side},{side}] for this model, got {tuple(images.shape)}"
            )
        dtype = self.precision.dtype(self.norm.weight.dtype, images.device.type)
        x = self.patch_embed(images, dtype)
        scales = self._drop_path_scales(x)
        for stage in self.layers:
            depth = len(stage.blocks)  # type: ignore[arg-type]
            x = stage(x, None if scales is None else scales[:depth])
            scales = None if scales is None else scales[depth:]
        return self.row_major(x)

    def blocks(self) -> list[nn.Module]:
        """Of all stages, from the first."""
        return [block for stage in self.layers for block in stage.blocks]  # type: ignore[union-attr]

    def _drop_path_scales(self, x: Tensor) -> list[Scales] | None:
        """Of all blocks where one draw is worth it; None where each draws for itself."""
        if not (self.training and self.fused and x.is_cuda) or torch.compiler.is_compiling():
            return None
        rates = [float(block.drop_path) for block in self.blocks()]  # type: ignore[arg-type]
        return drop_path_scales(rates, x) if any(rates) else None

    def set_grad_checkpointing(self, enable: bool = True, share: float = 1.0) -> None:
        """Has blocks keep their inputs alone for the backward pass and compute the rest again there.
        share: of the blocks, in (0, 1], evenly spread. The name is timm's."""
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        blocks = self.blocks()
        chosen = spread(len(blocks), share) if enable else []
        for number, block in enumerate(blocks):
            block.recompute = number in chosen  # type: ignore[assignment]

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay beside biases and 1-D ones: what makes the bias of
        distances, and the scales of the logits."""
        names = (name for name, _ in self.named_parameters())
        return {name for name in names if "rpe_mlp" in name or "logit_scale" in name}

    @property
    def width(self) -> int:
        """Of the last stage's tokens."""
        return self.sizes.width

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the products run in while autocast is off."""
        return self.precision.chosen


@torch.no_grad()
def init_weights(model: SwinV2) -> None:
    """Fills `model` as Feature Distillation does, from torch's global random state.

    Matrices and the patch convolution: normal with std 0.02, which its code cuts at +-2, a hundred
    deviations. Biases 0, norms 1 and 0, but those behind a block's branches 1e-5. Then the two
    matrices at the end of a branch in block i, counted from 1 over all stages, are divided by
    sqrt(2 i)."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for i, block in enumerate(model.blocks(), start=1):
        parts: Any = block
        parts.norm1.weight.fill_(FIRST_NORM_WEIGHT)
        parts.norm2.weight.fill_(FIRST_NORM_WEIGHT)
        parts.attn.proj.weight.div_(math.sqrt(2 * i))
        parts.mlp.fc2.weight.div_(math.sqrt(2 * i))
