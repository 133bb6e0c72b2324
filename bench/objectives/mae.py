"""MAE's network in the published formulation on timm's modules.

`TimmMae` is also the independent reference of the network's tests.
"""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.objectives.pair import Pair, images_batch
from eva_fast.data import uniform_mask_fields
from eva_fast.layers.inputs import normalise
from eva_fast.model import DecoderSizes, MaskedAutoencoder, ModelSizes, sizes_of
from eva_fast.objectives.mae import Mae

MODEL = "vit_small_patch16_224"
TEACHER_WIDTH = 768
EPS = 1e-6
COMPARED = (
    "encoder.patch_embed.proj.weight", "encoder.blocks.0.attn.qkv.bias", "mask_token",
    "decoder_embed.weight", "decoder_pred.weight",
)  # fmt: skip


class TimmMae(nn.Module):
    """facebookresearch/mae's network as published: all patches are embedded, the visible ones taken;
    mask tokens are appended and the list is put back in order; every token goes through every block."""

    def __init__(self, sizes: ModelSizes, decoder: DecoderSizes):
        super().__init__()
        from timm.layers import PatchEmbed
        from timm.models.vision_transformer import Block

        norm = partial(nn.LayerNorm, eps=EPS)
        dim, width = sizes.embed_dim, decoder.dim
        ratio = sizes.mlp_hidden / dim
        self.patch_embed = PatchEmbed(sizes.img_size, sizes.patch_size, 3, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("pos_embed", torch.zeros(1, sizes.num_patches + 1, dim))
        self.blocks = nn.ModuleList(
            Block(dim, sizes.num_heads, ratio, qkv_bias=True, norm_layer=norm)
            for _ in range(sizes.depth)
        )
        self.norm = norm(dim)
        self.decoder_embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("decoder_pos_embed", torch.zeros(1, sizes.num_patches + 1, width))
        self.decoder_blocks = nn.ModuleList(
            Block(width, decoder.heads, 4, qkv_bias=True, norm_layer=norm)
            for _ in range(decoder.depth)
        )
        self.decoder_norm = norm(width)
        self.decoder_pred = nn.Linear(width, sizes.predict_dim)

    def forward_features(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Tokens after the norm, of all patches or of `visible` int64 [B,K]."""
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        if visible is not None:
            x = x.gather(1, visible[..., None].expand(-1, -1, x.shape[2]))
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat((cls_token, x), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, images: Tensor, visible: Tensor) -> Tensor:
        """Predictions of all patches, [B,N,C]."""
        x = self.decoder_embed(self.forward_features(images, visible))
        batch, patches = len(x), self.pos_embed.shape[1] - 1
        flags = torch.ones(batch, patches, device=x.device).scatter_(1, visible, 0)
        dropped = flags.argsort(dim=1, descending=True, stable=True)[
            :, : patches - visible.shape[1]
        ]
        restore = torch.cat((visible, dropped), 1).argsort(1)
        tokens = torch.cat((x[:, 1:], self.mask_token.expand(*dropped.shape, -1)), 1)
        tokens = tokens.gather(1, restore[..., None].expand(-1, -1, x.shape[2]))
        x = torch.cat((x[:, :1], tokens), 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def loss(self, images: Tensor, visible: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """Minus the mean cosine over the patches of mask float [B,N]; target [B,N,C] of all."""
        cosine = F.cosine_similarity(self(images, visible), target, dim=-1)
        return -(cosine * mask).sum() / mask.sum()


def pair(model: str, depth: int | None, size: int) -> Pair:
    torch.manual_seed(0)
    sizes, decoder = (
        replace(sizes_of(model, depth=depth), predict_dim=TEACHER_WIDTH),
        DecoderSizes(),
    )
    ours, theirs = MaskedAutoencoder(sizes, decoder), TimmMae(sizes, decoder)
    theirs.load_state_dict(ours.official_state_dict())
    patches = sizes.num_patches
    batch = images_batch(size, sizes.img_size, uniform_mask_fields(sizes.grid, patches // 4))
    target = torch.randn(batch.mask.numel(), sizes.predict_dim)
    visible = batch.visible.long()
    mask = torch.ones(size, patches).scatter(1, visible, 0)
    everywhere = target.new_zeros(*mask.shape, target.shape[1])
    everywhere[mask.bool()] = target
    return Pair(
        name="mae", shape=f"{model} depth {sizes.depth} b{size}", objective=Mae(), ours=ours,
        theirs=theirs, batch=batch, target=target, compared=COMPARED,
        their_loss=lambda: theirs.loss(normalise(batch.images), visible, mask, everywhere),
        renamed=lambda name: name.removeprefix("encoder."),
    )  # fmt: skip
