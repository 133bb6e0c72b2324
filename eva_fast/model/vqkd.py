"""VQ-KD's tokenizer: a ViT, a codebook, and a ViT that tells a teacher's features from the codes.

Sources: BEiT v2 (Peng et al. 2022), section 3.1, and its code (microsoft/unilm, beit2,
modeling_vqkd.py); the facts, own code. Module names are the official state dict's.

    z = unit(task layer(encoder(2 x - 1)));  q = nearest code;  reconstruction = task layer(decoder(q))

The encoder's task layer and the codebook are float32 whatever the rest computes in.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast import layers
from eva_fast.layers import plain
from eva_fast.layers.block import LAYER_NORM_EPS
from eva_fast.layers.patch_embed import PatchConv
from eva_fast.layers.recompute import spread
from eva_fast.model.quantiser import Quantiser
from eva_fast.model.sizes import ModelSizes
from eva_fast.model.student import KERNELS
from eva_fast.ops.embed_tokens import embed_tokens
from eva_fast.ops.linear import linear
from eva_fast.ops.patchify import patchify

STD = 0.02
HALF = (0.5, 0.5, 0.5)
"""Mean and deviation that make 2 x - 1 of a colour x in 0..1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VqKdSizes:
    """Everything that fixes the shapes of a tokenizer."""

    student: ModelSizes
    """The encoder's sizes, and the decoder's but for its depth; `predict_dim` is the width of the
    features that it reconstructs."""
    codes: int = 8192
    code_dim: int = 32
    decoder_depth: int = 3

    @property
    def img_size(self) -> int:
        """Side of the square input in pixels."""
        return self.student.img_size


class Tower(nn.Module):
    """A ViT on rows of patches, [B, N, F] -> [B, N + 1, D], CLS in front; positions are learned."""

    def __init__(self, kit: Any, sizes: ModelSizes, depth: int, channels: int, patch: int):
        super().__init__()
        dim = sizes.embed_dim
        self.fused = kit is layers
        conv = PatchConv if self.fused else nn.Conv2d
        self.patch_embed = nn.Module()
        self.patch_embed.proj = conv(channels, dim, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.num_patches + 1, dim))
        self.blocks = nn.ModuleList(
            kit.Block(dim, sizes.num_heads, sizes.mlp_hidden, 0.0) for _ in range(depth)
        )
        self.fc_norm = kit.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def forward(self, rows: Tensor) -> Tensor:
        """All tokens after the norm, in the dtype of `rows` (or that of autocast)."""
        x = self._embedded(rows)
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(x)

    def no_weight_decay(self) -> set[str]:
        return {"cls_token", "pos_embed"}

    def _embedded(self, rows: Tensor) -> Tensor:
        proj: Any = self.patch_embed.proj
        if not self.fused:
            x = F.linear(rows, proj.weight.flatten(1), proj.bias)
            x = torch.cat((self.cls_token.to(x.dtype).expand(len(x), -1, -1), x), 1)
            return x + self.pos_embed.to(x.dtype)
        weight, copy = proj.matrix(rows.dtype)
        cls_token, positions = self.cls_token.flatten(), self.pos_embed.flatten(0, 1)
        patches = linear(rows, weight, None, copy)
        return embed_tokens(patches, None, cls_token.detach(), cls_token, positions, proj.bias)


class VqKd(nn.Module):
    """The tokenizer and its decoder.

    Images are uint8 [B,3,H,W], or floats that are 2 x - 1 already. N patches, M = B N rows, row-major
    over (image, patch); d numbers a code.

    Args:
        sizes: shapes; `decoder_depth=0` with `decodes=False` leaves the decoder out.
        compute_dtype, kernels: as of `EvaViT`.
        decodes: whether there is a decoder: what gives codes alone has none.
    """

    def __init__(
        self,
        sizes: VqKdSizes,
        compute_dtype: torch.dtype = torch.float32,
        kernels: str = "auto",
        decodes: bool = True,
    ):
        super().__init__()
        if kernels not in KERNELS:
            raise ValueError(f"kernels must be auto, torch, native or triton, got {kernels!r}")
        self.sizes, student = sizes, sizes.student
        self.grid = student.grid
        kit: Any = plain if kernels == "torch" else layers
        self.precision = kit.Precision(compute_dtype)
        dim, patch = student.embed_dim, student.patch_size
        make = nn.Linear if kernels == "torch" else layers.Linear
        self.encoder = Tower(kit, student, student.depth, 3, patch)
        # never in 16 bits, so without the copies of the layers
        self.encode_task_layer = nn.Sequential(
            nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, sizes.code_dim)
        )
        self.quantize = Quantiser(sizes.codes, sizes.code_dim)
        if decodes:
            self.decoder = Tower(kit, student, sizes.decoder_depth, sizes.code_dim, 1)
            self.decode_task_layer = nn.Sequential(
                make(dim, dim), nn.Tanh(), make(dim, student.predict_dim)
            )
        _init_weights(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """The encoder's tokens after its norm, [B,T,D], CLS first."""
        with self.precision.region(images.device.type):
            return self.encoder(self._rows(images))

    def encode(self, images: Tensor) -> Tensor:
        """What is quantised: unit rows [M, d], float32."""
        patches = self.forward_features(images)[:, 1:]
        first: Any = self.encode_task_layer[0]
        z = self.encode_task_layer(patches.flatten(0, 1).to(first.weight.dtype))
        return F.normalize(z, dim=-1)

    def codes(self, images: Tensor) -> Tensor:
        """int64 [B,N]: the code of each patch."""
        return self.quantize.codes(self.encode(images)).view(len(images), -1)

    def decode(self, quantised: Tensor) -> Tensor:
        """Reconstructed features [M, C] of quantised rows [M, d]."""
        device = quantised.device.type
        rows = quantised.view(-1, self.sizes.student.num_patches, quantised.shape[1])
        with self.precision.region(device):
            patches = self.decoder(rows.to(self._dtype(device)))[:, 1:]
            return self.decode_task_layer(patches.flatten(0, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(z [M,d], quantised [M,d], index int64 [M], reconstruction [M,C]); gradients of the
        reconstruction pass the codes straight through to z."""
        z = self.encode(images)
        quantised, index = self.quantize(z)
        return z, quantised, index, self.decode(z + (quantised - z).detach())

    def set_grad_checkpointing(self, enable: bool = True, share: float = 1.0) -> None:
        """As of `EvaViT`, for the blocks of both towers."""
        for tower in (self.encoder, getattr(self, "decoder", None)):
            blocks = [] if tower is None else tower.blocks
            chosen = spread(len(blocks), share) if enable and len(blocks) else []
            for number, block in enumerate(blocks):
                block.recompute = number in chosen

    def _dtype(self, device_type: str) -> torch.dtype:
        return self.precision.dtype(self.encoder.pos_embed.dtype, device_type)

    def _rows(self, images: Tensor) -> Tensor:
        """[B, N, 3 P P] of the images, in the compute dtype."""
        side, patch = self.sizes.student.img_size, self.sizes.student.patch_size
        if images.ndim != 4 or images.shape[1:] != (3, side, side):
            raise ValueError(
                f"images must be [B,3,{side},{side}] for this tokenizer, got {tuple(images.shape)}"
            )
        dtype = self._dtype(images.device.type)
        if images.dtype == torch.uint8:
            return patchify(images.contiguous(), patch, HALF, HALF, dtype)
        return F.unfold(images.to(dtype), patch, stride=patch).mT.contiguous()


@torch.no_grad()
def _init_weights(model: VqKd) -> None:
    """Linears, positions and CLS normal with deviation 0.02 (cut at +-2, that is not at all), biases
    0, then the two matrices that write to the stream of block i (from 1) over sqrt(2 i). The patch
    convolutions keep PyTorch's own values."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, Tower):
            nn.init.trunc_normal_(module.pos_embed, std=STD)
            nn.init.trunc_normal_(module.cls_token, std=STD)
    for tower in (m for m in model.modules() if isinstance(m, Tower)):
        for i, block in enumerate(tower.blocks, start=1):
            block.attn.proj.weight.div_(math.sqrt(2 * i))  # type: ignore[union-attr, operator]
            block.mlp.fc2.weight.div_(math.sqrt(2 * i))  # type: ignore[union-attr, operator]
