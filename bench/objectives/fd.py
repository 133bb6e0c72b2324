"""Feature Distillation of BEiT's ViT: timm's `Beit` with a 1x1 convolution behind it.

`TimmDistilled` is also the independent reference of whole steps in the tests, of a Swin too.
"""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.objectives.pair import Pair, images_batch
from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD, normalise
from eva_fast.model import BeitViT, ModelSizes, sizes_of
from eva_fast.model.distilled import Distilled
from eva_fast.objectives.feature_distillation import BETA, FeatureDistillation

MODEL = "beit_base_patch16_224"
TEACHER_WIDTH = 768
COMPARED = (
    "encoder.patch_embed.proj.weight", "encoder.rel_pos_bias.relative_position_bias_table",
    "encoder.blocks.0.attn.q_bias", "encoder.blocks.0.gamma_1", "decoder.0.weight",
)  # fmt: skip


class TimmDistilled(nn.Module):
    """A timm network and the projector, in the published formulation (Feature-Distillation's code).

    encoder: with `forward_features(images)`, [B,T,D] or [B,h,w,D]; dim: the teacher's width C."""

    def __init__(self, encoder: nn.Module, dim: int):
        super().__init__()
        self.encoder = encoder
        self.decoder = nn.Sequential(nn.Conv1d(encoder.num_features, dim, 1))

    def forward(self, images: Tensor) -> Tensor:
        """[B,T,C]."""
        tokens = self.encoder.forward_features(images).flatten(1, -2)
        return self.decoder(tokens.mT).mT

    def loss(self, images: Tensor, features: Tensor) -> Tensor:
        """images: normalised floats; features [B,T,C]: the teacher's, after its last norm."""
        target = F.layer_norm(features, features.shape[-1:])
        return F.smooth_l1_loss(self(images), target, beta=BETA)


def timm_beit(sizes: ModelSizes, **options) -> nn.Module:
    """timm's network of BEiT's student."""
    from timm.models.beit import Beit

    return Beit(
        img_size=sizes.img_size, patch_size=sizes.patch_size, embed_dim=sizes.embed_dim,
        depth=sizes.depth, num_heads=sizes.num_heads, mlp_ratio=sizes.mlp_hidden / sizes.embed_dim,
        num_classes=0, global_pool="", use_abs_pos_emb=False, use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True, init_values=0.1, **options,
    )  # fmt: skip


def imagenet(images: Tensor) -> Tensor:
    """Bytes as a loader hands them over, normalised."""
    return normalise(images, torch.float32, IMAGENET_MEAN, IMAGENET_STD)


def pair(model: str, depth: int | None, size: int) -> Pair:
    torch.manual_seed(0)
    sizes = sizes_of(model, depth=depth)
    sizes = replace(sizes, predict_dim=TEACHER_WIDTH)
    ours = Distilled(BeitViT(sizes), TEACHER_WIDTH)
    theirs = TimmDistilled(timm_beit(sizes), TEACHER_WIDTH)
    theirs.load_state_dict(ours.state_dict())
    batch = images_batch(size, sizes.img_size)
    target = torch.randn(size, sizes.num_patches + 1, TEACHER_WIDTH)
    return Pair(
        name="fd", shape=f"{model} depth {sizes.depth} b{size}", objective=FeatureDistillation(),
        ours=ours, theirs=theirs, batch=batch, target=target,
        their_loss=partial(_their_loss, theirs, batch.images, target), compared=COMPARED,
    )  # fmt: skip


def _their_loss(network: TimmDistilled, images: Tensor, target: Tensor) -> Tensor:
    return network.loss(imagenet(images), target)
