"""Students by name or by sizes."""

from typing import Any

import torch

from eva_fast.errors import UsageError
from eva_fast.model.beit import BeitViT
from eva_fast.model.networks.backbone import Backbone
from eva_fast.model.networks.masked import MaskedBackbone
from eva_fast.model.networks.sizes import BackboneSizes, backbone_sizes_of, is_backbone
from eva_fast.model.sizes import ModelSizes, is_beit, sizes_of
from eva_fast.model.swin import SwinV2
from eva_fast.model.swin_sizes import SwinSizes, is_swin, swin_sizes_of
from eva_fast.model.variant import EVA01, VARIANT_OPTIONS, Variant
from eva_fast.model.vit import EvaViT

Sizes = ModelSizes | SwinSizes | BackboneSizes


def create_model(
    name: str | None = None,
    *,
    predict_dim: int | None = None,
    img_size: int | None = None,
    patch_size: int | None = None,
    embed_dim: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    mlp_hidden: int | None = None,
    channels: int | None = None,
    drop_path: float = 0.0,
    variant: Variant = EVA01,
    compute_dtype: torch.dtype = torch.float32,
    kernels: str = "auto",
) -> Any:
    """A student by name, its sizes changed by keyword, or by keywords alone. Initial values come from
    torch's global random state. ValueError for an unknown name or sizes that do not fit together.

    Names: `eva_g_patch14_224`, `eva_giant_patch14_224`, `eva_ti_patch16_224`, ... are an `EvaViT`, and
    so are keywords alone; `beit_base_patch16_224`, ... a `BeitViT`, with `mask_token` and `lm_head`
    where `predict_dim` is given; `swinv2_base_window14_224`, ... a `SwinV2`, which has no head.
    `timm/NAME` and `torchvision/NAME` are those libraries' networks, a `Backbone`, in a `MaskedBackbone`
    where `predict_dim` is given; of the sizes they take those that the library's builder does.
    variant: what an `EvaViT` has beside EVA-01's network; UsageError for another student."""
    sizes = named_sizes(
        name,
        predict_dim=predict_dim,
        img_size=img_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_hidden=mlp_hidden,
        channels=channels,
    )
    if variant != EVA01 and (not isinstance(sizes, ModelSizes) or is_beit(name)):
        raise UsageError(
            f"{', '.join(VARIANT_OPTIONS)} are of EVA's ViT (eva_SIZE_patchP_R), not of {name}"
        )
    options: dict[str, Any] = dict(
        drop_path=drop_path, compute_dtype=compute_dtype, kernels=kernels
    )
    if isinstance(sizes, BackboneSizes):
        encoder = Backbone(sizes, drop_path, compute_dtype)
        if predict_dim is None:
            return encoder
        return MaskedBackbone(encoder, predict_dim, fused=kernels != "torch")
    if isinstance(sizes, SwinSizes):
        return SwinV2(sizes, **options)
    if is_beit(name):
        return BeitViT(sizes, masked=predict_dim is not None, **options)
    return EvaViT(sizes, variant=variant, **options)


def named_sizes(name: str | None, **overrides: int | None) -> Sizes:
    """`swin_sizes_of` of a Swin's name, `backbone_sizes_of` of another library's, `sizes_of` of any
    other, or of None."""
    if name is not None and is_backbone(name):
        return backbone_sizes_of(name, **overrides)
    if name is not None and is_swin(name):
        return swin_sizes_of(name, **overrides)
    return sizes_of(name, **overrides)
