"""Students by name or by sizes."""

import torch

from eva_fast.model.sizes import sizes_of
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
) -> EvaViT:
    """A student by name (`eva_g_patch14_224`, `eva_giant_patch14_224`, `eva_ti_patch16_224`, ...),
    its sizes changed by keyword, or by keywords alone. Initial values come from torch's global
    random state. ValueError for an unknown name or sizes that do not fit together."""
    sizes = sizes_of(
        name,
        predict_dim=predict_dim,
        img_size=img_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_hidden=mlp_hidden,
    )
    return EvaViT(sizes, drop_path=drop_path, compute_dtype=compute_dtype, kernels=kernels)
