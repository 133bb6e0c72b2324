"""The student against the official code's outputs, and against itself in float64 where sizes differ."""

import pytest
import torch
import torch.nn.functional as F

import eva_fast
from eva_fast.layers.stream import drop_path_scale, drop_path_scales
from eva_fast.model.init import STD

SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_hidden", "predict_dim")


@pytest.fixture(params=["torch", "auto"])
def micro(eva_micro, request):
    tensors, meta = eva_micro
    model = eva_fast.create_model(**{k: int(meta[k]) for k in SIZES}, kernels=request.param)
    model.load_official({k[6:]: v for k, v in tensors.items() if k.startswith("param.")})
    return model, tensors


def relative(a, b):
    return ((a - b).norm() / b.norm().clamp_min(1e-12)).item()


def test_outputs_of_official_code(micro):
    model, t = micro
    torch.testing.assert_close(
        model.forward_features(t["image"], t["mask"]), t["features"], rtol=0, atol=1e-5
    )
    torch.testing.assert_close(model(t["image"], t["mask"]), t["prediction"], rtol=0, atol=1e-5)
    loss = model.loss(t["image"], t["mask"], t["target"])
    assert abs(loss.item() - t["loss"].item()) < 1e-5
    loss.backward()
    for name, p in model.named_parameters():
        assert relative(p.grad, t[f"grad.{name}"]) < 1e-4, name


def test_mask_as_indices_is_the_same(micro):
    model, t = micro
    indices = t["mask"].nonzero()[:, 1].view(len(t["mask"]), -1).int()
    assert torch.equal(model(t["image"], indices), model(t["image"], t["mask"]))


@pytest.mark.parametrize(
    "sizes",
    [
        dict(img_size=36, patch_size=12, embed_dim=176, depth=2, num_heads=2, mlp_hidden=279),
        dict(img_size=32, patch_size=16, embed_dim=60, depth=1, num_heads=5, mlp_hidden=61),
    ],
    ids=["head88-patch12-hidden279", "one-block"],
)
@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_odd_sizes_against_written_out_maths(sizes, kernels):
    """Every token through every block in float64 with attention written out, then the masked rows."""
    torch.manual_seed(0)
    model = eva_fast.create_model(**sizes, predict_dim=20, kernels=kernels).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    side, patches = sizes["img_size"], model.sizes.num_patches
    image = torch.randn(3, 3, side, side, dtype=torch.float64)
    mask = torch.zeros(3, patches, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(patches)[: patches // 2]] = True
    target = torch.randn(3 * (patches // 2), 20, dtype=torch.float64)

    p = dict(model.named_parameters())
    x = F.conv2d(
        image, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], sizes["patch_size"]
    )
    x = x.flatten(2).mT
    x = torch.where(mask[..., None], p["mask_token"], x)
    x = torch.cat([p["cls_token"].expand(3, 1, -1), x], 1) + p["pos_embed"]
    heads, dim = sizes["num_heads"], sizes["embed_dim"]
    for i in range(sizes["depth"]):
        w = {
            k.removeprefix(f"blocks.{i}."): v for k, v in p.items() if k.startswith(f"blocks.{i}.")
        }
        y = F.layer_norm(x, (dim,), w["norm1.weight"], w["norm1.bias"], 1e-6)
        q, k, v = (y @ w["attn.qkv.weight"].T).split(dim, -1)
        q, v = q + w["attn.q_bias"], v + w["attn.v_bias"]
        q, k, v = (z.unflatten(-1, (heads, -1)).transpose(1, 2) for z in (q, k, v))
        y = ((q @ k.mT) * (dim // heads) ** -0.5).softmax(-1) @ v
        x = x + y.transpose(1, 2).flatten(2) @ w["attn.proj.weight"].T + w["attn.proj.bias"]
        y = F.layer_norm(x, (dim,), w["norm2.weight"], w["norm2.bias"], 1e-6)
        h = y @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
        g = 0.5 * h * (1 + torch.erf(h / 2**0.5))
        x = x + g @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]
    features = F.layer_norm(x, (dim,), p["norm.weight"], p["norm.bias"], 1e-6)
    prediction = features[:, 1:][mask] @ p["lm_head.weight"].T + p["lm_head.bias"]
    cosine = (prediction * target).sum(-1) / (prediction.norm(dim=-1) * target.norm(dim=-1))
    expected = torch.autograd.grad(-cosine.mean(), list(p.values()))

    torch.testing.assert_close(model.forward_features(image, mask), features)
    torch.testing.assert_close(model(image, mask), prediction)
    model.loss(image, mask, target).backward()
    for (name, parameter), gradient in zip(p.items(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, msg=lambda m, n=name: f"{n}: {m}")


def test_uint8_images_are_normalised_inside(micro):
    model, t = micro
    image = torch.randint(0, 256, t["image"].shape, dtype=torch.uint8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    torch.testing.assert_close(
        model(image, t["mask"]), model((image / 255 - mean) / std, t["mask"]), rtol=0, atol=1e-5
    )


def test_initial_values():
    torch.manual_seed(1)
    model = eva_fast.create_model("eva_ti_patch16_224", predict_dim=64)
    for name, p in model.named_parameters():
        if "norm" in name:
            assert torch.equal(p, torch.full_like(p, float(name.endswith("weight")))), name
        elif p.ndim == 1:
            assert not p.any(), name
        else:
            scale = 1.0
            if name.endswith(("attn.proj.weight", "fc2.weight")):
                scale = (2 * (int(name.split(".")[1]) + 1)) ** -0.5
            assert p.abs().max() <= STD * scale * (1 + 1e-6), name
            # a normal cut at one standard deviation keeps a std of 0.5397 of the uncut one
            tolerance = 0.1 if p.numel() < 1000 else 0.03
            assert abs(p.std().item() / (STD * scale) - 0.5397) < tolerance, name


def test_giant_has_the_published_number_of_parameters():
    with torch.device("meta"):
        for name in ("eva_g_patch14_224", "eva_giant_patch14_224"):
            model = eva_fast.create_model(name, predict_dim=768)
            assert sum(p.numel() for p in model.parameters()) == 1_012_229_632


def test_drop_path_grows_with_depth_and_scales():
    model = eva_fast.create_model("eva_ti_patch16_32", depth=5, predict_dim=8, drop_path=0.1)
    rates = [b.drop_path for b in model.blocks]
    assert rates == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])
    torch.manual_seed(0)
    scale = drop_path_scale(0.25, True, torch.empty(100_000, 1))
    assert scale.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert scale.mean().item() == pytest.approx(1.0, abs=0.01)
    assert drop_path_scale(0.25, False, torch.empty(4, 1)) is None


def test_one_draw_for_all_blocks():
    torch.manual_seed(0)
    none, first, last = drop_path_scales([0.0, 0.25, 0.5], torch.empty(50_001, 1))
    assert none == (None, None)
    for keep, (attn, mlp) in ((0.75, first), (0.5, last)):
        assert not torch.equal(attn, mlp)
        for scale in (attn, mlp):
            assert scale.shape == (50_001,) and scale.dtype == torch.float32
            assert scale.data_ptr() % 16 == 0 and scale.is_contiguous()
            assert torch.equal(scale.unique(), torch.tensor([0.0, 1.0]) / keep)
            assert scale.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: eva_fast.create_model("resnet50"), "unknown model 'resnet50'"),
        (lambda: eva_fast.create_model("eva_xl_patch14_224"), "SIZE one of"),
        (lambda: eva_fast.create_model("eva_g_patch15_224"), "not a multiple of patch_size"),
        (lambda: eva_fast.create_model("eva_s_patch16_224", num_heads=7), "divisible by num_heads"),
        (lambda: eva_fast.create_model("eva_s_patch16_224", depth=0), "depth must be"),
        (lambda: eva_fast.create_model(img_size=32), "these sizes are needed too: patch_size"),
        (lambda: eva_fast.create_model("eva_ti_patch16_32", drop_path=1.0), "drop_path"),
    ],
)
def test_sizes_that_cannot_be_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_bad_inputs_are_named(micro):
    model, t = micro
    with pytest.raises(ValueError, match=r"images must be \[B,3,56,56\]"):
        model(torch.zeros(1, 3, 28, 28), t["mask"][:1])
    with pytest.raises(ValueError, match="mask has 9 patches"):
        model(t["image"][:1], torch.ones(1, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="same number"):
        model(t["image"][:2], torch.tensor([[True] + [False] * 15, [True] * 2 + [False] * 14]))
    with pytest.raises(ValueError, match="bool or int32"):
        model(t["image"], t["mask"].float())
    with pytest.raises(ValueError, match="K at least 1"):
        model(t["image"], torch.zeros(len(t["image"]), 0, dtype=torch.int32))
    with pytest.raises(ValueError, match="at least one; got 0 to 0"):
        model(t["image"], torch.zeros(len(t["image"]), 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="target has shape"):
        model.loss(t["image"], t["mask"], t["target"][:5])
    with pytest.raises(ValueError, match="missing: cls_token.*unknown: nonsense"):
        state = model.state_dict()
        state["nonsense"] = state.pop("cls_token")
        model.load_official(state)
