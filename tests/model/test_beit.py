"""BEiT's student: timm's network, its published sizes and initial values, masks, drop-path."""

import copy

import pytest
import torch
from timm.models.beit import Beit

import eva_fast
from eva_fast.model import BeitViT, ModelSizes, sizes_of
from eva_fast.train import decay_groups

SIZES = dict(
    img_size=40, patch_size=8, embed_dim=48, depth=3, num_heads=3, mlp_hidden=96, predict_dim=20
)


def student(kernels="auto", **options):
    torch.manual_seed(0)
    made = BeitViT(ModelSizes(**SIZES), kernels=kernels, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def timms(model):
    sizes = model.sizes
    other = Beit(
        img_size=sizes.img_size, patch_size=sizes.patch_size, embed_dim=sizes.embed_dim,
        depth=sizes.depth, num_heads=sizes.num_heads, mlp_ratio=sizes.mlp_hidden / sizes.embed_dim,
        num_classes=0, global_pool="", use_abs_pos_emb=False, use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True, init_values=0.1,
    )  # fmt: skip
    other.load_state_dict(model.state_dict())
    return other.eval()


def run(features, model, images, upstream):
    out = features(images)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(out, parameters, upstream)
    return out.detach(), dict(zip(names, found, strict=True))


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_it_is_timms(kernels):
    model, images = student(kernels), torch.randn(2, 3, 40, 40)
    other, upstream = timms(model), torch.randn(2, 26, 48)
    found, gradients = run(model.forward_features, model, images, upstream)
    expected, wanted = run(other.forward_features, other, images, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (gradients[name] - value).norm() <= 1e-5 * value.norm(), name


def test_in_float64_it_is_timms_to_the_last_bits():
    model, images = student().double(), torch.randn(2, 3, 40, 40, dtype=torch.float64)
    torch.testing.assert_close(
        model.forward_features(images), timms(model).double().forward_features(images),
        rtol=1e-12, atol=1e-12,
    )  # fmt: skip


def test_fused_and_plain_with_drop_path_masks_and_bytes():
    models = [student(k, masked=True, drop_path=0.5).train() for k in ("auto", "torch")]
    images = torch.randint(256, (4, 3, 40, 40), dtype=torch.uint8)
    mask = torch.rand(4, 25).argsort(1)[:, :7].sort(1).values.int()
    losses = []
    for model in models:
        torch.manual_seed(3)
        out = model(images, mask)
        assert out.shape == (28, 20)
        losses.append(out)
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 1e-5 * q.grad.norm() + 1e-9, name


def test_rows_are_those_of_all():
    model = student(masked=True)
    images, mask = torch.randn(2, 3, 40, 40), torch.tensor([[0, 3, 9], [1, 2, 24]]).int()
    whole = model.forward_features(images, mask)
    rows = torch.cat([torch.zeros(2, 1, dtype=torch.int32), mask + 1], 1)
    found = model.norm(model.tokens(images, mask, rows))
    expected = torch.stack([w[r.long()] for w, r in zip(whole, rows, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(images, mask), model.lm_head(expected[:, 1:]).flatten(0, 1))


def test_published_sizes():
    with torch.device("meta"):
        for name, count in (("base_patch16", 85_665_360), ("large_patch14", 302_955_584)):
            model = eva_fast.create_model(f"beit_{name}_224")
            assert sum(p.numel() for p in model.parameters()) == count


def test_initial_values():
    model = eva_fast.create_model("beit_s_patch16_64", depth=2, predict_dim=9)
    state = model.state_dict()
    assert not state["rel_pos_bias.relative_position_bias_table"].any()
    for name, value in state.items():
        if name.endswith(("gamma_1", "gamma_2")):
            assert (value == 0.1).all()
        elif name.endswith("bias"):
            assert not value.any()
        elif value.ndim > 1 and "table" not in name:
            layer = 2 * (int(name.split(".")[1]) + 1) if name.startswith("blocks") else 1
            scale = layer**0.5 if name.endswith(("proj.weight", "fc2.weight")) else 1
            if name.startswith("patch_embed"):
                scale = 1
            assert value.abs().max() * scale <= 0.02 + 1e-6
            if value.numel() > 1000:  # of a normal cut at one deviation
                assert (value * scale).std() == pytest.approx(0.02 * 0.5396, rel=0.1)


def test_what_does_not_decay():
    decay, spared = decay_groups(student(masked=True))
    assert {"rel_pos_bias.relative_position_bias_table", "mask_token"} <= set(decay)
    assert {"cls_token", "blocks.0.gamma_1", "blocks.2.gamma_2", "lm_head.bias"} <= set(spared)


def test_what_it_does_not_have():
    model = copy.deepcopy(student())
    with pytest.raises(ValueError, match="no mask_token"):
        model.forward_features(torch.randn(1, 3, 40, 40), torch.tensor([[1]]).int())
    with pytest.raises(ValueError, match=r"\[B,3,40,40\]"):
        model.forward_features(torch.randn(1, 3, 32, 32))
    assert sizes_of("beit_base_patch16_224") == sizes_of("vit_b_patch16_224")
    with pytest.raises(ValueError, match="unknown model"):
        eva_fast.create_model("beit_enormous_patch16_224")
