"""EVA-01's student: a plain pre-norm ViT that predicts a teacher's features of masked patches.

Module names are the official state dict's, so a checkpoint is `state_dict()` and nothing is mapped.
The network is built of the fused layers (`eva_fast.layers`) or, as their reference, of the plain
ones (`eva_fast.layers.plain`), which compute the same from the same parameters.

Where only predictions are wanted, the last block computes queries, projection and MLP of the masked
tokens alone, and the head sees nothing else.
"""

from typing import Any

import torch
from torch import Tensor, nn

from eva_fast.layers import plain
from eva_fast.layers.block import LAYER_NORM_EPS
from eva_fast.layers.inputs import STATISTICS
from eva_fast.model.head import Head
from eva_fast.model.init import init_weights
from eva_fast.model.sizes import ModelSizes
from eva_fast.model.student import VitStudent, drop_path_rates
from eva_fast.model.variant import EVA01, Variant


class EvaViT(VitStudent):
    """The student with its head.

    `images` are uint8 [B,3,H,W] (normalised inside) or floats already normalised. `mask` is int32
    indices [B,K], ascending, or bool [B,N] with K True in every row. N patches, T = N+1 tokens,
    M = B*K masked rows, row-major over (image, patch). Source: EVA, CVPR 2023, and its code.

    Args:
        sizes: shapes of the model.
        drop_path: rate of the last block; it grows linearly from 0 in the first.
        variant: what it has beside EVA-01's network.
        compute_dtype, kernels: as for `VitStudent`.
    """

    def __init__(
        self,
        sizes: ModelSizes,
        drop_path: float = 0.0,
        variant: Variant = EVA01,
        compute_dtype: torch.dtype = torch.float32,
        kernels: str = "auto",
    ):
        super().__init__(sizes, compute_dtype, kernels)
        kit, dim = self.kit, sizes.embed_dim
        self.variant = variant
        self.patch_embed = kit.PatchEmbed(
            sizes.patch_size, dim, *STATISTICS[variant.normalize], sizes.channels,
            variant.patch_embed_grad,
        )  # fmt: skip
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.num_patches + 1, dim))
        self.rel_pos_bias: nn.Module | None = None
        if variant.relative_bias != "none":
            decoupled = variant.relative_bias == "decoupled"
            kind = kit.DecoupledRelativePositionBias if decoupled else kit.RelativePositionBias
            self.rel_pos_bias = kind(sizes.grid, sizes.num_heads)
        self.blocks = nn.ModuleList(
            kit.Block(dim, sizes.num_heads, sizes.mlp_hidden, rate, layer_scale=variant.layer_scale)
            for rate in drop_path_rates(drop_path, sizes.depth)
        )
        self.norm = kit.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.lm_head = (Head if self.fused else plain.Head)(dim, sizes.predict_dim)
        if not self.pos_embed.is_meta:
            init_weights(self)

    def forward_features(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """All tokens after the final norm, [B,T,D]."""
        masked = None if mask is None else self._masked(mask)
        dtype = self._dtype(self.pos_embed, images)
        with self.precision.region(images.device.type):
            return self.norm(self._tokens(images, masked, None, dtype))

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Predictions of the masked patches, [M,C]; the last block computes only their rows."""
        masked, dtype = self._masked(mask), self._dtype(self.pos_embed, images)
        with self.precision.region(images.device.type):
            tokens = self._tokens(images, masked, masked + 1, dtype)
            return self.lm_head.project(tokens, self.norm)

    def loss(self, images: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """-mean cos(prediction, target) over all masked patches, float32 scalar; target [M,C]."""
        masked, dtype = self._masked(mask), self._dtype(self.pos_embed, images)
        expected = (masked.numel(), self.sizes.predict_dim)
        if target.shape != expected:
            raise ValueError(
                f"target has shape {tuple(target.shape)}, the masked patches need {expected} "
                "(masked rows, teacher dimension)"
            )
        with self.precision.region(images.device.type):
            tokens = self._tokens(images, masked, masked + 1, dtype)
            return self.lm_head.loss(tokens, self.norm, target)

    def tokens(self, images: Tensor) -> Any:
        """What leaves the last block, a `Stream` or (plain) [B,T,D], without masks. Call it inside
        `precision.region`."""
        return self._tokens(images, None, None, self._dtype(self.pos_embed, images))

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay beside biases and 1-D ones, as EVA-01's code has them;
        `mask_token` and tables of relative positions decay."""
        return {"pos_embed", "cls_token"}

    def _tokens(
        self, images: Tensor, masked: Tensor | None, rows: Tensor | None, dtype: torch.dtype
    ) -> Any:
        """What leaves the last block, a `Stream` or [B,T,D]: all tokens, or those of `rows` int32
        [B,K] alone, where CLS is row 0."""
        self._check_images(images)
        x = self.patch_embed(images, masked, self.mask_token, self.cls_token, self.pos_embed, dtype)
        *blocks, last = self.blocks
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias()
        scales = self._drop_path_scales(x, self.blocks)
        if scales is not None:
            for block, own in zip(blocks, scales):
                x = block(x, scales=own, bias=bias)
            return last(x, rows, scales[-1], bias)
        for block in blocks:
            x = block(x, bias=bias)
        return last(x, rows, bias=bias)
