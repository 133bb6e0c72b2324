"""open_clip's models, accelerated, against themselves."""

import open_clip
import pytest
import torch
from open_clip.model import CLIP

from tests.acceleration.comparing import assert_same, pair

TEXT = {"context_length": 6, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2}


@pytest.mark.parametrize("options", [{}, {"ls_init_value": 0.3}], ids=["plain", "LayerScale"])
@pytest.mark.parametrize("quick", [False, True], ids=["GELU", "QuickGELU"])
def test_its_own_towers(quick, options):
    model = CLIP(16, {**VISION, **options}, {**TEXT, **options}, quick_gelu=quick)
    plain, fused = pair(model)
    fates = {name.split(".")[0]: str(b) for name, b in fused.eva_fast_report.blocks.items()}
    assert fates == {
        "visual": "attention and MLP fused",
        "transformer": "MLP fused; attention left: words have a mask",
    }
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 32, 32, generator=generator)
    words = torch.randint(0, 50, (2, 6), generator=generator)
    for training in (False, True):
        plain.train(training), fused.train(training)
        assert_same(
            plain, fused, lambda m: torch.cat([m.encode_image(images), m.encode_text(words)])
        )


def test_a_tower_of_timm():
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "image_size": 224}
    plain, fused = pair(CLIP(16, vision, TEXT))
    kinds = {b.kind for b in fused.eva_fast_report.blocks.values()}
    assert kinds == {
        "timm.models.vision_transformer.Block",
        "open_clip.transformer.ResidualAttentionBlock",
    }
    images = torch.randn(1, 3, 224, 224)
    assert_same(plain, fused, lambda m: m.encode_image(images))


def test_the_library_is_the_real_one():
    assert open_clip.__version__
