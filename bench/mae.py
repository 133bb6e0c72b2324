"""MAE's training step beside the published formulation on timm's modules, in turns.

    python -m bench.mae [--model vit_small_patch16_224] [--batch-size 8] [--seconds 30]

`TimmMae` is also the independent reference of the network's tests.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness import Case, Settings, Variant, measure
from eva_fast.baselines import training
from eva_fast.data import Batch, uniform_mask_fields
from eva_fast.layers import keep_copies
from eva_fast.layers.inputs import normalise
from eva_fast.model import DecoderSizes, MaskedAutoencoder, ModelSizes, sizes_of
from eva_fast.objectives.mae import Mae
from eva_fast.train import TrainState, TrainStep, make_optimizer
from eva_fast.train.config import OptimConfig
from eva_fast.train.guard import Guard
from eva_fast.train.sums import Sums

EPS = 1e-6


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


def batch_of(sizes: ModelSizes, size: int) -> Batch:
    """Random images and masks."""
    fields = uniform_mask_fields(sizes.grid, sizes.num_patches // 4)
    columns: dict[str, Any] = {}
    for field in fields:
        column = torch.empty(size, *field.shape, dtype=torch.int32)
        field.make_rows(torch.arange(size).numpy(), column.numpy())
        columns[field.name] = column
    shape = (size, 3, sizes.img_size, sizes.img_size)
    numbers = torch.arange(size)
    images = torch.randint(256, shape, dtype=torch.uint8)
    return Batch(images=images, **columns, ids=numbers, views=torch.zeros_like(numbers))


def our_step(network: MaskedAutoencoder, batch: Batch, target: Tensor) -> Callable[[], Any]:
    """The step of a run, without the teacher."""
    device = torch.device("cpu")
    state = TrainState(
        module=network, teacher=None, loader=None, device=device, sums=Sums((), device),
        optimizer=make_optimizer(network, copies=keep_copies(network, torch.float32)),
        guard=Guard(device, scaled=False, spike=OptimConfig().spike),
    )  # fmt: skip
    step = TrainStep(state, Mae(), lambda batch: target, clip_grad=training.CLIP_NORM)
    return lambda: step(batch, rate=1e-4)


def timm_step(network: TimmMae, batch: Batch, target: Tensor) -> Callable[[], Any]:
    """The same on timm's modules with PyTorch's fused AdamW, normalisation included."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    visible = batch.visible.long()
    mask = torch.ones(len(visible), network.pos_embed.shape[1] - 1).scatter(1, visible, 0)
    everywhere = target.new_zeros(*mask.shape, target.shape[1])
    everywhere[mask.bool()] = target

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = network.loss(normalise(batch.images), visible, mask, everywhere)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), training.CLIP_NORM, foreach=True)
        optimizer.step()
        return loss.detach()

    return step


def case(sizes: ModelSizes, decoder: DecoderSizes, size: int) -> Case:
    """Both steps from the same weights on the same batch; they agree on the loss."""
    torch.manual_seed(0)
    ours, theirs = MaskedAutoencoder(sizes, decoder), TimmMae(sizes, decoder)
    theirs.load_state_dict(ours.official_state_dict())
    batch = batch_of(sizes, size)
    target = torch.randn(batch.mask.numel(), sizes.predict_dim)
    own, plain = our_step(ours, batch, target), timm_step(theirs, batch, target)
    return Case(
        subject="mae step", mode="step", shape=f"{sizes.embed_dim} wide b{size}", device="cpu",
        variants={
            "reference": Variant(plain, lambda: [plain()]),
            "eva_fast": Variant(own, lambda: [own().loss.clone()]),
        },
        batch=size,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--predict-dim", type=int, default=768)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0)
    given = parser.parse_args()
    sizes = replace(sizes_of(given.model), predict_dim=given.predict_dim)
    torch.manual_seed(0)
    found = measure(case(sizes, DecoderSizes(), given.batch_size), Settings(seconds=given.seconds))
    print(found["subject"], found["shape"], "on", torch.get_num_threads(), "threads")
    for name, row in found["variants"].items():
        seconds = row["seconds"]
        ratio = row["speedup"].get("reference")
        beside = "" if ratio is None else f", {ratio['median']:.2f} times as fast"
        print(f"{name:10} {1e3 * seconds['p50']:7.1f} ms ({row['rounds']} rounds){beside}")


if __name__ == "__main__":
    main()
