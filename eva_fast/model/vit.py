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

from eva_fast import layers
from eva_fast.layers import plain
from eva_fast.layers.block import LAYER_NORM_EPS
from eva_fast.layers.inputs import mask_indices
from eva_fast.layers.recompute import spread
from eva_fast.layers.stream import Scales, drop_path_scales
from eva_fast.model.head import Head
from eva_fast.model.init import init_weights
from eva_fast.model.official import Official
from eva_fast.model.sizes import ModelSizes

KERNELS = ("auto", "torch", "native", "triton")


class EvaViT(Official):
    """The student with its head.

    `images` are uint8 [B,3,H,W] (normalised inside) or floats already normalised. `mask` is int32
    indices [B,K], ascending, or bool [B,N] with K True in every row. N patches, T = N+1 tokens,
    M = B*K masked rows, row-major over (image, patch). Source: EVA, CVPR 2023, and its code.

    Args:
        sizes: shapes of the model.
        drop_path: rate of the last block; it grows linearly from 0 in the first.
        compute_dtype: dtype of the blocks' arithmetic; parameters stay float32. Norm statistics,
            softmax and loss are float32 whatever it is.
        kernels: "torch" builds it of the plain layers; anything else of the fused ones, whose ops
            `eva_fast.ops.set_kernels` chooses for the process.
    """

    def __init__(
        self,
        sizes: ModelSizes,
        drop_path: float = 0.0,
        compute_dtype: torch.dtype = torch.float32,
        kernels: str = "auto",
    ):
        super().__init__()
        if not 0.0 <= drop_path < 1.0:
            raise ValueError(f"drop_path must be at least 0 and below 1, got {drop_path}")
        self.sizes = sizes
        self.grid = sizes.grid
        if kernels not in KERNELS:
            raise ValueError(f"kernels must be auto, torch, native or triton, got {kernels!r}")
        # One set of classes or the other, with the same arguments.
        kit: Any = plain if kernels == "torch" else layers
        head = plain.Head if kernels == "torch" else Head
        self.fused = kernels != "torch"
        self.precision = kit.Precision(compute_dtype)
        dim, depth = sizes.embed_dim, sizes.depth
        self.patch_embed = kit.PatchEmbed(sizes.patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.num_patches + 1, dim))
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            kit.Block(dim, sizes.num_heads, sizes.mlp_hidden, rate) for rate in rates
        )
        self.norm = kit.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.lm_head = head(dim, sizes.predict_dim)
        if not self.pos_embed.is_meta:
            init_weights(self)

    def forward_features(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """All tokens after the final norm, [B,T,D]."""
        masked = None if mask is None else self._masked(mask)
        dtype = self._dtype(images)
        with self.precision.region(images.device.type):
            return self.norm(self._tokens(images, masked, None, dtype))

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Predictions of the masked patches, [M,C]; the last block computes only their rows."""
        masked, dtype = self._masked(mask), self._dtype(images)
        with self.precision.region(images.device.type):
            tokens = self._tokens(images, masked, masked + 1, dtype)
            return self.lm_head.project(tokens, self.norm)

    def loss(self, images: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """-mean cos(prediction, target) over all masked patches, float32 scalar; target [M,C]."""
        masked, dtype = self._masked(mask), self._dtype(images)
        expected = (masked.numel(), self.sizes.predict_dim)
        if target.shape != expected:
            raise ValueError(
                f"target has shape {tuple(target.shape)}, the masked patches need {expected} "
                "(masked rows, teacher dimension)"
            )
        with self.precision.region(images.device.type):
            tokens = self._tokens(images, masked, masked + 1, dtype)
            return self.lm_head.loss(tokens, self.norm, target)

    def set_grad_checkpointing(self, enable: bool = True, share: float = 1.0) -> None:
        """Has blocks keep their inputs alone for the backward pass and compute the rest again there:
        less memory for about a third more arithmetic, and the same numbers. share: of the blocks, in
        (0, 1], evenly spread. The name is timm's."""
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        chosen = spread(len(self.blocks), share) if enable else []
        for number, block in enumerate(self.blocks):
            block.recompute = number in chosen  # type: ignore[assignment]

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay beside biases and 1-D ones, as EVA-01's code has them;
        `mask_token` decays."""
        return {"pos_embed", "cls_token"}

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the products run in while autocast is off."""
        return self.precision.chosen

    def _dtype(self, images: Tensor) -> torch.dtype:
        return self.precision.dtype(self.pos_embed.dtype, images.device.type)

    def _masked(self, mask: Tensor) -> Tensor:
        """The mask as int32 [B,K] patch indices."""
        return mask_indices(mask, self.sizes.num_patches).to(torch.int32)

    def _tokens(
        self, images: Tensor, masked: Tensor | None, rows: Tensor | None, dtype: torch.dtype
    ) -> Any:
        """What leaves the last block, a `Stream` or [B,T,D]: all tokens, or those of `rows` int32
        [B,K] alone, where CLS is row 0."""
        self._check_images(images)
        x = self.patch_embed(images, masked, self.mask_token, self.cls_token, self.pos_embed, dtype)
        *blocks, last = self.blocks
        scales = self._drop_path_scales(x)
        if scales is not None:
            for block, own in zip(blocks, scales):
                x = block(x, scales=own)
            return last(x, rows, scales[-1])
        for block in blocks:
            x = block(x)
        return last(x, rows)

    def _drop_path_scales(self, x: Tensor) -> list[Scales] | None:
        """Of all blocks where one draw is worth it; None where each draws for itself."""
        if not (self.training and self.fused and x.is_cuda) or torch.compiler.is_compiling():
            return None
        rates = [float(block.drop_path) for block in self.blocks]  # type: ignore[arg-type]
        return drop_path_scales(rates, x) if any(rates) else None

    def _check_images(self, images: Tensor) -> None:
        side = self.sizes.img_size
        if images.ndim != 4 or images.shape[1:] != (3, side, side):
            raise ValueError(
                f"images must be [B,3,{side},{side}] for this model, got {tuple(images.shape)}"
            )
