"""Vision transformers of transformers and timm with numbers of their own, and their features."""

import pytest
import torch

from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
from tests.weights.networks import random_

transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")
transformers.logging.set_verbosity_error()

SIZES = dict(
    hidden_size=66, num_hidden_layers=3, num_attention_heads=3, image_size=48, patch_size=12
)
HALF = (0.5, 0.5, 0.5)


def normalised(images, mean=HALF, std=HALF):
    return (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def hf(kind, **options):
    """A model of transformers with numbers of its own."""
    config = {
        "siglip": transformers.SiglipVisionConfig,
        "siglip model": transformers.SiglipVisionConfig,
        "dinov2": transformers.Dinov2Config,
        "registers": transformers.Dinov2WithRegistersConfig,
        "vit": transformers.ViTConfig,
        "vit classifier": transformers.ViTConfig,
        "deit": transformers.DeiTConfig,
    }[kind](
        **{
            **SIZES,
            **({} if "dino" in kind or kind == "registers" else {"intermediate_size": 150}),
            **options,
        }
    )
    model = {
        "siglip": transformers.SiglipVisionModel,
        "dinov2": transformers.Dinov2Model,
        "registers": transformers.Dinov2WithRegistersModel,
        "vit": transformers.ViTModel,
        "vit classifier": transformers.ViTForImageClassification,
        "deit": transformers.DeiTModel,
    }  # fmt: skip
    if kind == "siglip model":
        text = dict(
            hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
        both = transformers.SiglipConfig(
            vision_config=config.to_dict(), text_config={**text, "vocab_size": 10}
        )
        return random_(transformers.SiglipModel(both))
    return random_(model[kind](config))


PREFIX = {
    "siglip": 0,
    "siglip model": 0,
    "dinov2": 1,
    "registers": 5,
    "vit": 1,
    "vit classifier": 1,
    "deit": 2,
}
IMAGENETS = ("dinov2", "registers")


@torch.no_grad()
def features(model, kind, images):
    tower = getattr(model, "vision_model", getattr(model, "vit", model))
    statistics = (IMAGENET_MEAN, IMAGENET_STD) if kind in IMAGENETS else (HALF, HALF)
    return tower(normalised(images, *statistics)).last_hidden_state[:, PREFIX[kind] :]


def dinov2(registers):
    """timm's DINOv2, whose features are the authors' own, and its weights under their names."""
    kind = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    model = random_(timm.create_model(kind, depth=2, img_size=56, num_classes=0))
    state = {**model.state_dict(), "mask_token": torch.zeros(1, 384)}
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        place = torch.randn(1, 1, 384)  # timm adds it to the class token
        state["cls_token"] = state["cls_token"] - place
        state["pos_embed"] = torch.cat([place, state["pos_embed"]], 1)
    return model, state
