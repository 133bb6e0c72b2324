"""Feature Distillation of Swin V2: timm's `SwinTransformerV2` with a 1x1 convolution behind it."""

from functools import partial

import torch
from torch import nn

from bench.objectives.fd import TimmDistilled, _their_loss
from bench.objectives.pair import Pair, images_batch
from eva_fast.model import SwinSizes, SwinV2
from eva_fast.model.distilled import Distilled
from eva_fast.model.swin_sizes import swin_sizes_of
from eva_fast.objectives.feature_distillation import FeatureDistillation
from eva_fast.weights.naming.swin import TIMM_V2

MODEL = "swinv2_base_window14_224"
TEACHER_WIDTH = 1024
COMPARED = (
    "encoder.patch_embed.proj.weight", "encoder.layers.0.blocks.1.attn.rpe_mlp.2.weight",
    "encoder.layers.0.downsample.reduction.weight", "encoder.layers.0.blocks.1.attn.logit_scale",
    "encoder.layers.2.blocks.0.attn.q_bias", "decoder.0.weight",
)  # fmt: skip


def timm_swin(sizes: SwinSizes) -> nn.Module:
    """timm's network of these sizes."""
    from timm.models import SwinTransformerV2

    return SwinTransformerV2(
        img_size=sizes.img_size, patch_size=sizes.patch_size, embed_dim=sizes.embed_dim,
        depths=sizes.depths, num_heads=sizes.num_heads, window_size=sizes.window_size,
        num_classes=0, drop_path_rate=0.0,
    )  # fmt: skip


def renamed(name: str) -> str:
    """Our name of a `Distilled` Swin's parameter in `TimmDistilled`."""
    part, _, rest = name.partition(".")
    if part != "encoder":
        return name
    (found,) = TIMM_V2.write({rest: torch.empty(0)})
    return f"{part}.{found}"


def pair(model: str, depth: int | None, size: int) -> Pair:
    """Norms behind branches begin at 1, not at 1e-5, where branches are lost in rounding."""
    torch.manual_seed(0)
    sizes = swin_sizes_of(model, depth=depth)
    ours = Distilled(SwinV2(sizes), TEACHER_WIDTH)
    with torch.no_grad():
        for block in ours.encoder.blocks():
            block.norm1.weight.fill_(1.0)
            block.norm2.weight.fill_(1.0)
    theirs = TimmDistilled(timm_swin(sizes), TEACHER_WIDTH)
    theirs.load_state_dict({renamed(name): value for name, value in ours.state_dict().items()})
    batch = images_batch(size, sizes.img_size)
    target = torch.randn(size, sizes.num_patches, TEACHER_WIDTH)
    return Pair(
        name="swin", shape=f"{model} depths {sizes.depths} b{size}",
        objective=FeatureDistillation(), ours=ours, theirs=theirs, batch=batch, target=target,
        their_loss=partial(_their_loss, theirs, batch.images, target), compared=COMPARED,
        renamed=renamed,
    )  # fmt: skip
