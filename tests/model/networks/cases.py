"""Networks of other libraries, small enough to train in a test."""

import torch

VITS = {
    "vit": dict(model="timm/vit_tiny_patch16_224", patch_size=8, embed_dim=32, num_heads=2),
    "deit": dict(model="timm/deit_tiny_distilled_patch16_224", patch_size=8, embed_dim=32, num_heads=2),
    "deit3": dict(model="timm/deit3_small_patch16_224", patch_size=8, embed_dim=32, num_heads=2),
    "eva": dict(model="timm/eva_giant_patch14_224", patch_size=8, embed_dim=32, num_heads=2),
    "eva02": dict(model="timm/eva02_tiny_patch14_224", patch_size=8, embed_dim=32, num_heads=2),
    "siglip": dict(model="timm/vit_base_patch16_siglip_224", patch_size=8, embed_dim=32, num_heads=2),
    "dinov2": dict(
        model="timm/vit_small_patch14_reg4_dinov2", patch_size=8, embed_dim=32, num_heads=2
    ),
    "dinov3": dict(model="timm/vit_small_patch16_dinov3", patch_size=8, embed_dim=32, num_heads=2),
    "beit": dict(model="timm/beitv2_base_patch16_224", patch_size=8, embed_dim=32, num_heads=2),
}  # fmt: skip
"""One of each kind that timm has, of the option names of a run; images of 32 pixels, two blocks."""


def vit(name, **more):
    """Arguments of `create_model`: (name of the model, sizes)."""
    options = {**VITS[name], "img_size": 32, "depth": 2, **more}
    return options.pop("model"), options


def shaken(network, seed=1):
    """The network with numbers of its own everywhere, LayerScale and positions too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return network


def bytes_of(size, count=3, channels=3):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
