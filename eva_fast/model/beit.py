"""The ViT of BEiT v2 and Feature Distillation: no position embedding, but one relative position bias
shared by all blocks, and LayerScale (Bao et al. 2021; Wei et al. 2022; their codes).

Names are the official state dicts', which timm's `Beit(use_abs_pos_emb=False, use_rel_pos_bias=False,
use_shared_rel_pos_bias=True)` reads too. Images are normalised with ImageNet's statistics. Where
patches are masked, a `mask_token` stands for them and `lm_head` predicts.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from eva_fast.layers import plain
from eva_fast.layers.block import LAYER_NORM_EPS
from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
from eva_fast.model.head import Head
from eva_fast.model.init import init_weights
from eva_fast.model.sizes import ModelSizes
from eva_fast.model.student import VitStudent, drop_path_rates

STD = 0.02
LAYER_SCALE = 0.1


class BeitViT(VitStudent):
    """A ViT whose attention knows where patches stand to each other.

    `images` are uint8 [B,3,H,W] (normalised inside) or floats already normalised. `mask` is int32
    indices [B,K], ascending, or bool [B,N] with K True in every row. N patches, T = N+1 tokens.

    Args:
        sizes: shapes of the model; `predict_dim` matters where it is masked.
        drop_path: rate of the last block; it grows linearly from 0 in the first.
        layer_scale: initial gamma_1 and gamma_2 of every block.
        masked: whether it has `mask_token` and `lm_head`.
        compute_dtype, kernels: as for `VitStudent`.
    """

    def __init__(
        self,
        sizes: ModelSizes,
        drop_path: float = 0.0,
        layer_scale: float = LAYER_SCALE,
        masked: bool = False,
        compute_dtype: torch.dtype = torch.float32,
        kernels: str = "auto",
    ):
        super().__init__(sizes, compute_dtype, kernels)
        kit, dim = self.kit, sizes.embed_dim
        self.patch_embed = kit.PatchEmbed(
            sizes.patch_size, dim, IMAGENET_MEAN, IMAGENET_STD, sizes.channels
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)) if masked else None
        self.rel_pos_bias = kit.RelativePositionBias(sizes.grid, sizes.num_heads)
        self.blocks = nn.ModuleList(
            kit.Block(dim, sizes.num_heads, sizes.mlp_hidden, rate, layer_scale=layer_scale)
            for rate in drop_path_rates(drop_path, sizes.depth)
        )
        self.norm = kit.LayerNorm(dim, eps=LAYER_NORM_EPS)
        if masked:
            self.lm_head = (Head if self.fused else plain.Head)(dim, sizes.predict_dim)
        if not self.cls_token.is_meta:
            init_weights(self, STD)

    def forward_features(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """All tokens after the final norm, [B,T,D]."""
        with self.precision.region(images.device.type):
            return self.norm(self.tokens(images, mask))

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Predictions of the masked patches by `lm_head`, [B*K,C], row-major over (image, patch); the
        last block computes only their rows."""
        masked = self._masked(mask)
        with self.precision.region(images.device.type):
            return self.lm_head.project(self.tokens(images, masked, masked + 1), self.norm)

    def tokens(self, images: Tensor, mask: Tensor | None = None, rows: Tensor | None = None) -> Any:
        """What leaves the last block, a `Stream` or (plain) [B,T,D]: all tokens, or those of `rows`
        int32 [B,K] alone, where CLS is row 0. Call it inside `precision.region`."""
        x = self.embed(images, mask)
        return self.run_blocks(x, self.blocks, self.rel_pos_bias(), rows)

    def embed(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """The first block's tokens, [B,T,D] in the dtype of the blocks."""
        self._check_images(images)
        cls = self.cls_token
        dtype = self._dtype(cls, images)
        masked = None if mask is None else self._masked(mask)
        if masked is None:
            token = cls  # read by no patch
        elif self.mask_token is None:
            raise ValueError("this student has no mask_token: build it with masked=True")
        else:
            token = self.mask_token
        return self.patch_embed(images, masked, token, cls, None, dtype)

    def run_blocks(
        self, x: Any, blocks: Iterable[nn.Module], bias: Tensor, rows: Tensor | None = None
    ) -> Any:
        """`blocks` in a row, of tokens or of what other blocks gave; bias [H,T,T]. With `rows` int32
        [B,K], the last computes and gives these alone."""
        *first, last = blocks
        tokens = x if isinstance(x, Tensor) else x.x
        scales = self._drop_path_scales(tokens, [*first, last])
        for number, block in enumerate(first):
            drawn = {} if scales is None else {"scales": scales[number]}
            x = block(x, bias=bias, **drawn)
        drawn = {} if scales is None else {"scales": scales[-1]}
        return last(x, rows, bias=bias, **drawn)

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay beside biases and 1-D ones; the bias table and `mask_token`
        decay, as in the official code."""
        return {"cls_token"}
