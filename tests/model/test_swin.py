"""The Swin V2 student: timm's network with the same weights, sizes and names, the official start."""

import copy
import math

import pytest
import torch

import eva_fast
from eva_fast.errors import UsageError
from eva_fast.model.swin import SwinV2
from eva_fast.model.swin_sizes import SwinSizes, swin_sizes_of
from eva_fast.train import decay_groups
from eva_fast.weights.naming.swin import TIMM_V2

SMALL = SwinSizes(
    img_size=96, patch_size=4, embed_dim=12, depths=(1, 2, 3), num_heads=(3, 2, 4), window_size=6
)
"""Maps of 24, 12 and 6 tokens a side: windows, shifted windows, one window."""


def timm_swin(sizes):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    return timm.models.SwinTransformerV2(
        img_size=sizes.img_size, patch_size=sizes.patch_size, embed_dim=sizes.embed_dim,
        depths=sizes.depths, num_heads=sizes.num_heads, window_size=sizes.window_size,
        num_classes=0, drop_path_rate=0.0,
    )  # fmt: skip


def student(sizes=SMALL, seed=0, **options):
    torch.manual_seed(seed)
    model = SwinV2(sizes, **options)
    for name, p in model.named_parameters():
        if "logit_scale" in name:
            torch.nn.init.normal_(p, math.log(10), 0.3)
        else:
            torch.nn.init.normal_(p, std=0.1)
    return model


@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_timm(kernels):
    """Features and every gradient in float32, as near to those of timm's own modules in float64 as
    timm's in float32 are, within a factor of two, or as rounding moves outputs of the official code."""
    model, other = student(kernels=kernels), timm_swin(SMALL)
    other.load_state_dict(TIMM_V2.write(model.state_dict()), strict=True)
    images, upstream = torch.randn(2, 3, 96, 96), torch.randn(2, 36, 48)

    def run(network):
        dtype = network.norm.weight.dtype
        out = network.forward_features(images.to(dtype)).view(2, 36, 48)
        out.backward(upstream.to(dtype))
        return {"features": out} | {n: p.grad for n, p in network.named_parameters()}

    exact = TIMM_V2.read(run(copy.deepcopy(other).double()), "")
    near, found = TIMM_V2.read(run(other), ""), run(model)
    assert found.keys() == exact.keys()
    for name, value in exact.items():
        bound = 2e-5 if name == "features" else 1e-4
        allowed = max(2 * (near[name] - value).norm(), bound * value.norm())
        assert (found[name] - value).norm() <= allowed, name


@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_bytes_are_normalised_as_imagenet(kernels):
    model = student(kernels=kernels)
    raw = torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    by_hand = model.forward_features((raw / 255 - mean) / std)
    torch.testing.assert_close(model.forward_features(raw), by_hand, rtol=1e-4, atol=1e-4)


def test_half_precision_of_fused_and_plain():
    """Both round as far as 16-bit arithmetic does, not further."""
    images = torch.randn(2, 3, 96, 96)
    exact = student(kernels="torch").double().forward_features(images.double())
    for kernels in ("torch", "auto"):
        model = student(kernels=kernels, compute_dtype=torch.bfloat16)
        found = model.forward_features(images)
        assert found.isfinite().all()
        assert (found - exact).norm() < 0.1 * exact.norm()


def test_parameters_of_the_published_student():
    with torch.device("meta"):
        model = SwinV2(swin_sizes_of("swinv2_base_window14_224"))
    assert sum(p.numel() for p in model.parameters()) == 86_893_816
    assert model.sizes.grid == (7, 7) and model.sizes.width == 1024


def test_the_official_start():
    torch.manual_seed(0)
    model = SwinV2(
        SwinSizes(img_size=64, embed_dim=48, depths=(2, 2), num_heads=(3, 6), window_size=8)
    )
    p = dict(model.named_parameters())
    assert p["layers.1.blocks.0.attn.qkv.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert p["patch_embed.proj.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    third = p["layers.1.blocks.0.mlp.fc2.weight"]  # of all blocks
    assert third.std().item() == pytest.approx(0.02 / math.sqrt(6), rel=0.05)
    assert (p["layers.0.blocks.1.norm1.weight"] == 1e-5).all()
    assert (p["layers.0.downsample.norm.weight"] == 1).all() and (p["norm.weight"] == 1).all()
    assert (p["layers.0.blocks.0.attn.logit_scale"] == math.log(10)).all()
    assert not any(value.any() for name, value in p.items() if name.endswith("bias"))


def test_what_does_not_decay():
    decay, spared = decay_groups(SwinV2(SMALL))
    assert all(name.endswith(".weight") and "rpe_mlp" not in name for name in decay)
    assert "layers.1.blocks.1.attn.logit_scale" in spared
    assert "layers.0.blocks.0.attn.rpe_mlp.2.weight" in spared


def test_drop_path_grows_over_all_stages():
    model = SwinV2(SMALL, drop_path=0.5)
    assert [b.drop_path for b in model.blocks()] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_checkpointed_blocks_are_spread():
    model = student()
    model.set_grad_checkpointing(share=0.5)
    assert [b.recompute for b in model.blocks()] == [True, False] * 3
    with pytest.raises(ValueError, match="share"):
        model.set_grad_checkpointing(share=0)


def test_names():
    assert swin_sizes_of("swinv2_tiny_window8_256") == SwinSizes(
        img_size=256, embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=8
    )
    small = swin_sizes_of("swinv2_base_window7_224", embed_dim=24, depth=7, num_heads=2)
    assert (small.embed_dim, small.depths) == (24, (2, 2, 1, 2))
    assert small.num_heads == (2, 4, 8, 16)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("swinv2_huge_window7_224", {}, "SIZE one of tiny, small, base, large"),
        ("swinv2_cr_tiny_224", {}, "unknown model"),
        ("swinv2_tiny_window7_256", {}, "windows of 7 do not fill a map of 64x64"),
        ("swinv2_tiny_window7_200", {}, "not a multiple of 32"),
        ("swinv2_tiny_window7_224", {"num_heads": 5}, "not divisible by 5"),
        ("swinv2_tiny_window7_224", {"depth": 6}, "at least 7"),
        ("swinv2_tiny_window7_224", {"mlp_hidden": 99}, "mlp_hidden is of a ViT"),
    ],
)
def test_names_and_sizes_that_cannot_be(name, options, message):
    with pytest.raises(UsageError, match=message):
        swin_sizes_of(name, **options)


def test_images_of_another_size():
    with pytest.raises(ValueError, match=r"\[B,3,96,96\]"):
        student().forward_features(torch.zeros(1, 3, 64, 96))


def test_objectives_of_vits_refuse_it(tmp_path):
    with pytest.raises(UsageError, match="the objective 'eva' trains a ViT"):
        eva_fast.pretrain(model="swinv2_tiny_window8_64", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
