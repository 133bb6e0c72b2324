"""Students by name or by sizes."""

from typing import Any

import torch

from eva_fast.model.beit import BeitViT
from eva_fast.model.sizes import ModelSizes, is_beit, sizes_of
from eva_fast.model.swin import SwinV2
from eva_fast.model.swin_sizes import SwinSizes, is_swin, swin_sizes_of
from eva_fast.model.vit import EvaViT


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
    drop_path: float = 0.0,
    compute_dtype: torch.dtype = torch.float32,
    kernels: str = "auto",
) -> Any:
    """A student by name, its sizes changed by keyword, or by keywords alone. Initial values come from
    torch's global random state. ValueError for an unknown name or sizes that do not fit together.

    Names: `eva_g_patch14_224`, `eva_giant_patch14_224`, `eva_ti_patch16_224`, ... are an `EvaViT`, and
    so are keywords alone; `beit_base_patch16_224`, ... a `BeitViT`, with `mask_token` and `lm_head`
    where `predict_dim` is given; `swinv2_base_window14_224`, ... a `SwinV2`, which has no head."""
    sizes = named_sizes(
        name,
        predict_dim=predict_dim,
        img_size=img_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_hidden=mlp_hidden,
    )
    options: dict[str, Any] = dict(
        drop_path=drop_path, compute_dtype=compute_dtype, kernels=kernels
    )
    if isinstance(sizes, SwinSizes):
        return SwinV2(sizes, **options)
    if is_beit(name):
        return BeitViT(sizes, masked=predict_dim is not None, **options)
    return EvaViT(sizes, **options)


def named_sizes(name: str | None, **overrides: int | None) -> ModelSizes | SwinSizes:
    """`swin_sizes_of` of a Swin's name, `sizes_of` of any other, or of None."""
    if name is not None and is_swin(name):
        return swin_sizes_of(name, **overrides)
    return sizes_of(name, **overrides)
