"""Every kind of vision transformer that timm has, by name: accelerated or refused with a reason."""

import copy

import pytest
import timm
import torch

import eva_fast
from eva_fast.errors import UsageError
from tests.acceleration.comparing import assert_same, pair

SMALL = {"depth": 2, "embed_dim": 64, "num_heads": 2, "num_classes": 7}
ALL = "attention and MLP fused"
GATED = "attention fused; MLP left: the MLP is a SwiGLU"
TURNED = "MLP fused; attention left: rotary positions turn a bias of k"
MIXED = "MLP fused; attention left: rotary positions of each head (RotaryEmbeddingMixed)"
NORMED = "the norm between fused; attention left: attention with a norm behind it; MLP left: "

TAKEN = {
    # augreg, MAE, in21k, OpenAI, DINO and their like share an architecture
    "vit_tiny_patch16_224": ALL,
    "vit_base_patch16_384": ALL,
    "vit_large_patch14_224": ALL,
    "vit_huge_patch14_224": ALL,
    "vit_medium_patch16_gap_240": ALL,
    "vit_base_patch16_plus_240": ALL,
    "vit_so150m_patch16_reg4_gap_256": ALL,
    "vit_base_patch16_224_miil": ALL,
    "vit_base_patch16_clip_224": ALL,
    "vit_base_patch16_clip_quickgelu_224": ALL,
    "vit_base_patch16_siglip_224": ALL,
    "vit_so400m_patch16_siglip_256": ALL,
    "vit_base_patch14_dinov2": ALL,
    "vit_base_patch14_reg4_dinov2": ALL,
    "vit_giant_patch14_dinov2": "attention fused; MLP left: the MLP is a GluMlp",
    "vit_small_patch16_dinov3": ALL,
    "vit_huge_plus_patch16_dinov3": GATED,
    "vit_base_patch16_rope_reg1_gap_256": ALL,
    "vit_base_patch16_rope_mixed_224": MIXED,
    "vit_pe_core_base_patch16_224": TURNED,
    "deit_base_patch16_224": ALL,
    "deit_base_distilled_patch16_224": ALL,
    "deit3_base_patch16_224": ALL,
    "beit_base_patch16_224": ALL,
    "beitv2_base_patch16_224": ALL,
    "eva_large_patch14_196": ALL,
    "eva_giant_patch14_224": ALL,
    "eva02_base_patch14_224": GATED,
    "eva02_large_patch14_448": GATED,
    "eva02_base_patch16_clip_224": NORMED,
    "flexivit_base": ALL,
}
"""{name: what its report says}."""

REFUSED = {
    "vit_base_patch16_rpn_224": "ResPostBlock.*normalises behind",
    "vit_base_patch16_xp_224": "ParallelScalingBlock.*side by side",
    "vit_small_patch16_18x2_224": "ParallelThingsBlock.*side by side",
    "samvit_base_patch16": "vision_transformer_sam.Block.*windows",
    "vit_relpos_base_patch16_224": "RelPosBlock.*relative positions",
    "eva02_enormous_patch14_clip_224": "EvaBlockPostNorm.*normalises behind",
    "aimv2_large_patch14_224": "nothing to fuse: .*norm1 is a RmsNorm",
    "cait_xxs24_224": "LayerScaleBlock.*no block that is known",
}
"""{name: what the error says}."""


def small(name, **options):
    """A model of that name with two narrow blocks and few patches, and its side."""
    patch = next((int(part[5:]) for part in name.split("_") if part.startswith("patch")), 16)
    side = 4 * patch
    if name == "vit_giant_patch14_dinov2":
        options["mlp_ratio"] = 4  # its own gives an odd width here
    return timm.create_model(name, img_size=side, **SMALL, **options), side


@pytest.mark.parametrize("name", TAKEN)
def test_accelerated(name):
    model, side = small(name, drop_path_rate=0.3)
    plain, fused = pair(model)
    assert TAKEN[name] in str(fused.eva_fast_report)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    for training in (False, True):
        plain.train(training), fused.train(training)
        assert_same(plain, fused, lambda model: model(images))


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    options = {} if "cait" in name else {"img_size": 64}
    if "samvit" not in name:
        options |= SMALL if "18x2" not in name else {**SMALL, "depth": 2}
    else:
        options |= {"depth": 2, "embed_dim": 64, "num_heads": 2}
    model = timm.create_model(name, **options)
    classes = [type(module) for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match=REFUSED[name]):
        eva_fast.accelerate(model)
    assert [type(module) for module in model.modules()] == classes
    assert not hasattr(model, "eva_fast_report")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_that_the_list_is_long_enough():
    assert len(TAKEN) + len(REFUSED) >= 30
    assert not [name for name in {**TAKEN, **REFUSED} if not timm.is_model(name)]
