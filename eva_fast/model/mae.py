"""Masked autoencoders: an encoder that sees the visible patches alone, and a light decoder that predicts
the dropped ones (He et al., CVPR 2022; EVA-01's `modeling_mae_pretrain` for features as targets).

The encoder is timm's ViT, name for name. Its patches are gathered before their embedding, so that
nothing is computed of the others. The decoder's last block computes queries, projection and MLP of the
dropped tokens alone: the loss reads no others.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eva_fast.errors import UsageError
from eva_fast.layers import plain
from eva_fast.layers.block import LAYER_NORM_EPS
from eva_fast.layers.inputs import STATISTICS, Statistics
from eva_fast.layers.recompute import spread
from eva_fast.model.head import Head
from eva_fast.model.mae_init import init_weights, position_table
from eva_fast.model.official import Official
from eva_fast.model.sizes import ModelSizes
from eva_fast.model.student import VitStudent
from eva_fast.ops.unshuffle_tokens import unshuffle_tokens

MLP_RATIO = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderSizes:
    """What fixes the shapes of a decoder. ValueError for sizes that cannot be built."""

    dim: int = 512
    depth: int = 4
    heads: int = 16

    def __post_init__(self):
        if min(self.dim, self.depth, self.heads) < 1 or self.dim % self.heads or self.dim % 4:
            raise UsageError(
                "a decoder needs at least one block and a width that its heads and 4 divide (a "
                f"quarter for each part of the positions), got decoder_dim {self.dim}, decoder_depth "
                f"{self.depth}, decoder_heads {self.heads}"
            )


class MaeEncoder(VitStudent):
    """timm's ViT with a class token and fixed positions: `forward_features` of all patches, or of some.

    Args:
        sizes: shapes of the model; `predict_dim` is the decoder's.
        statistics: what uint8 images are normalised with.
        compute_dtype, kernels: as for `VitStudent`.
    """

    def __init__(
        self,
        sizes: ModelSizes,
        statistics: Statistics = "clip",
        compute_dtype: torch.dtype = torch.float32,
        kernels: str = "auto",
    ):
        if sizes.embed_dim % 4:
            raise UsageError(
                f"MAE's positions need a width that 4 divides, got embed_dim {sizes.embed_dim}"
            )
        super().__init__(sizes, compute_dtype, kernels)
        kit, dim = self.kit, sizes.embed_dim
        self.statistics = statistics
        self.patch_embed = kit.KeptPatchEmbed(
            sizes.patch_size, dim, *STATISTICS[statistics], sizes.channels
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("pos_embed", position_table(sizes.grid, dim))
        self.blocks = nn.ModuleList(
            kit.Block(dim, sizes.num_heads, sizes.mlp_hidden, 0.0, qkv_bias="full")
            for _ in range(sizes.depth)
        )
        self.norm = kit.LayerNorm(dim, eps=LAYER_NORM_EPS)
        init_weights(self)

    def forward_features(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Tokens after the final norm, CLS first: [B,T,D] of all patches, or [B,1+K,D] of `visible`,
        int32 [B,K]."""
        with self.precision.region(images.device.type):
            return self.norm(self.tokens(images, visible))

    def tokens(self, images: Tensor, visible: Tensor | None) -> Any:
        """The same before the norm: a `Stream`, or a tensor of the plain layers."""
        self._check_images(images)
        dtype = self._dtype(self.cls_token, images)
        positions = self.get_buffer("pos_embed")
        x = self.patch_embed(images, visible, self.cls_token, positions, dtype)
        for block in self.blocks:
            x = block(x)
        return x

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay beside biases and 1-D ones."""
        return {"cls_token"}


class MaskedAutoencoder(Official):
    """The encoder with its decoder: predictions of the dropped patches from the visible ones.

    `visible` and `dropped` are int32 [B,K] and [B,N-K], together every patch once. M = B (N-K) rows,
    row-major over (image, dropped patch). The encoder's official names have no prefix.

    Args:
        sizes: shapes of the encoder; `predict_dim` is the width of a prediction.
        decoder: shapes of the decoder.
        statistics, compute_dtype, kernels: as for `MaeEncoder`.
    """

    def __init__(
        self,
        sizes: ModelSizes,
        decoder: DecoderSizes,
        statistics: Statistics = "clip",
        compute_dtype: torch.dtype = torch.float32,
        kernels: str = "auto",
    ):
        super().__init__()
        self.encoder = MaeEncoder(sizes, statistics, compute_dtype, kernels)
        kit, head = self.encoder.kit, Head if self.encoder.fused else plain.Head
        dim = decoder.dim
        self.sizes, self.grid = sizes, sizes.grid
        self.decoder_embed = head(sizes.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("decoder_pos_embed", position_table(sizes.grid, dim))
        self.decoder_blocks = nn.ModuleList(
            kit.Block(dim, decoder.heads, MLP_RATIO * dim, 0.0, qkv_bias="full")
            for _ in range(decoder.depth)
        )
        self.decoder_norm = kit.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.decoder_pred = head(dim, sizes.predict_dim)
        init_weights(self)

    def forward(self, images: Tensor, visible: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Predictions of the dropped patches, [M,C]; without `dropped` of all, [B,N,C]."""
        with self.encoder.precision.region(images.device.type):
            if dropped is not None:
                tokens = self._tokens(images, visible, dropped + 1)
                return self.decoder_pred.project(tokens, self.decoder_norm)
            tokens = self._tokens(images, visible, None)
            rows = self.decoder_pred.project(tokens, self.decoder_norm)
            return rows.view(len(images), -1, rows.shape[1])[:, 1:]

    def loss(self, images: Tensor, visible: Tensor, dropped: Tensor, target: Tensor) -> Tensor:
        """-mean cos(prediction, target) over all dropped patches, float32 scalar; target [M,C].

        The published code of EVA-L returns + cos, which its log shows to be a slip."""
        expected = (dropped.numel(), self.sizes.predict_dim)
        if target.shape != expected:
            raise ValueError(
                f"target has shape {tuple(target.shape)}, the dropped patches need {expected} "
                "(dropped rows, teacher dimension)"
            )
        with self.encoder.precision.region(images.device.type):
            tokens = self._tokens(images, visible, dropped + 1)
            return self.decoder_pred.loss(tokens, self.decoder_norm, target)

    def set_grad_checkpointing(self, enable: bool = True, share: float = 1.0) -> None:
        """As `EvaViT.set_grad_checkpointing`, over the blocks of encoder and decoder."""
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        blocks = [*self.encoder.blocks, *self.decoder_blocks]
        chosen = spread(len(blocks), share) if enable else []
        for number, block in enumerate(blocks):
            block.recompute = number in chosen  # type: ignore[assignment]

    def dtype(self, device_type: str) -> torch.dtype:
        """What the blocks compute in on such a device."""
        return self.encoder.precision.dtype(self.mask_token.dtype, device_type)

    def official_names(self) -> dict[str, str]:
        return {name: name.removeprefix("encoder.") for name in self.state_dict()}

    def _tokens(self, images: Tensor, visible: Tensor, rows: Tensor | None) -> Any:
        """What leaves the decoder's last block: all tokens, or those of `rows` int32 [B,N-K] alone,
        where CLS is row 0."""
        encoder = self.encoder
        encoded = self.decoder_embed.project(encoder.tokens(images, visible), encoder.norm)
        x = unshuffle_tokens(
            encoded.view(len(images), -1, encoded.shape[1]),
            visible,
            self.mask_token.flatten(),
            self.get_buffer("decoder_pos_embed").flatten(0, 1),
        )
        *blocks, last = self.decoder_blocks
        for block in blocks:
            x = block(x)
        return last(x, rows)
