"""Students of timm and torchvision against these libraries themselves."""

import copy

import pytest
import torch
from torch import nn

from eva_fast.errors import UsageError
from eva_fast.layers.inputs import normalise
from eva_fast.model import create_model, named_sizes
from eva_fast.train.optimizer import decay_groups
from tests.model.networks.cases import VITS, bytes_of, shaken, vit

timm = pytest.importorskip("timm")
models = pytest.importorskip("torchvision.models")


def own(name, options):
    """timm's model as a user makes it."""
    options = dict(options)
    if "mlp_hidden" in options:
        options["mlp_ratio"] = options.pop("mlp_hidden") / options["embed_dim"]
    return timm.create_model(name.removeprefix("timm/"), num_classes=0, **options)


@pytest.mark.parametrize("kind", VITS)
def test_features_are_timms(kind):
    name, options = vit(kind)
    student = create_model(name, **options).eval()
    shaken(student.network)
    theirs = own(name, options).eval()
    theirs.load_state_dict(student.official_state_dict())  # strictly
    images = bytes_of(32)
    config = theirs.pretrained_cfg
    with torch.no_grad():
        expected = theirs.forward_features(
            normalise(images, torch.float32, config["mean"], config["std"])
        )
        if isinstance(theirs.norm, nn.Identity):
            expected = theirs.fc_norm(expected)
        found = student.forward_features(images)
    assert student.prefix_tokens == theirs.num_prefix_tokens
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    shape = torch.Size((3, student.sizes.has_cls + 16, 32))
    assert student.tokens(images).shape == shape


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm/test_resnet", 64), ("timm/test_convnext", 64), ("timm/swin_tiny_patch4_window7_224", 64),
        ("timm/test_efficientnet", 64),
    ],
)  # fmt: skip
def test_maps_are_timms(name, size):
    student = create_model(name, img_size=size).eval()
    theirs = timm.create_model(
        name.removeprefix("timm/"), num_classes=0, **dict(student.sizes.arguments)
    ).eval()
    theirs.load_state_dict(student.official_state_dict())
    images = bytes_of(size)
    config = theirs.pretrained_cfg
    with torch.no_grad():
        expected = theirs.forward_features(
            normalise(images, torch.float32, config["mean"], config["std"])
        )
        found = student.forward_features(images)
    places = expected.flatten(1, 2) if "swin" in name else expected.flatten(2).mT
    torch.testing.assert_close(found, places, rtol=1e-5, atol=1e-5)
    assert student.grid == (expected.shape[1:3] if "swin" in name else expected.shape[2:])


@pytest.mark.parametrize(
    ("name", "node", "size"),
    [("shufflenet_v2_x0_5", "conv5", 64), ("mobilenet_v3_small", "features", 64)],
)
def test_features_are_torchvisions(name, node, size):
    student = create_model(f"torchvision/{name}", img_size=size).eval()
    theirs = models.get_model(name, weights=None).eval()
    theirs.load_state_dict(student.official_state_dict())
    seen = []
    getattr(theirs, node).register_forward_hook(lambda module, given, out: seen.append(out))
    images = bytes_of(size)
    with torch.no_grad():
        theirs(normalise(images, torch.float32, student.mean, student.std))
        found = student.forward_features(images)
    torch.testing.assert_close(found, seen[0].flatten(2).mT, rtol=1e-5, atol=1e-5)
    fixed = {n.split(".")[0] for n, p in student.network.named_parameters() if not p.requires_grad}
    assert fixed == {"fc" if name.startswith("shuffle") else "classifier"}


def test_training_drops_the_paths_that_timm_drops():
    """The same draws from the same seed, and so the same gradients, also where blocks are computed
    again for the backward pass."""
    name, options = vit("vit", depth=3)
    student = create_model(name, **options, drop_path=0.4).train()
    shaken(student.network)
    theirs = own(name, {**options, "drop_path_rate": 0.4}).train()
    theirs.load_state_dict(student.official_state_dict())
    images = bytes_of(32, 8)
    pixels = normalise(images, torch.float32, student.mean, student.std)

    torch.manual_seed(3)
    expected = theirs.forward_features(pixels)
    expected.square().sum().backward()
    for share in (0, 0.5, 1):
        student.zero_grad()
        student.set_grad_checkpointing(share > 0, share or 1.0)
        torch.manual_seed(3)
        found = student.forward_features(images)
        found.square().sum().backward()
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        for (key, value), other in zip(theirs.named_parameters(), student.network.parameters()):
            torch.testing.assert_close(other.grad, value.grad, rtol=0, atol=0, msg=key)
    student.eval()
    assert torch.equal(student.forward_features(images), student.forward_features(images))


def test_heads_do_not_train_and_timms_list_does_not_decay():
    name, options = vit("siglip")
    student = create_model(name, **options, predict_dim=5)
    fixed = {n for n, p in student.named_parameters() if not p.requires_grad}
    assert fixed and all(n.startswith("encoder.network.attn_pool.") for n in fixed)
    decay, spared = decay_groups(student)
    assert "encoder.network.pos_embed" in spared and "mask_token" in decay
    assert "encoder.network.blocks.0.attn.qkv.weight" in decay

    beit = create_model(vit("beit")[0], **vit("beit")[1])
    table = "network.blocks.0.attn.relative_position_bias_table"
    assert table in decay_groups(beit)[1]


def test_running_statistics_stay_where_a_step_is_skipped():
    student = create_model("timm/test_resnet", img_size=32).train()

    def statistics():
        return {n: b.clone() for n, b in student.network.named_buffers()}

    student(bytes_of(32))
    student.after_step(torch.tensor(True))
    moved = statistics()
    assert moved["bn1.num_batches_tracked"] == 1
    student(torch.full((2, 3, 32, 32), torch.nan))
    assert student.network.bn1.running_mean.isnan().all()
    student.after_step(torch.tensor(False))
    assert all(torch.equal(moved[name], value) for name, value in statistics().items())
    fresh = copy.deepcopy(student)
    fresh.load_state_dict(student.state_dict())
    fresh.after_step(torch.tensor(False))
    assert torch.equal(fresh.network.bn1.running_mean, moved["bn1.running_mean"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm/vit_tinny_patch16_224", {}, "unknown timm model .* vit_tiny_patch16_224"),
        ("timm/vit_tiny_patch16_224.mine", {}, "unknown timm model .*augreg_in21k"),
        ("timm/resnet18", dict(depth=3), "'timm/resnet18' takes no depth"),
        ("timm/vit_tiny_patch16_224", dict(img_size=33), "33 is not a multiple of patch_size 16"),
        ("timm/vit_tiny_patch16_224", dict(num_heads=5), "cannot build .* num_heads=5"),
        ("timm/vit_tiny_patch16_224", dict(depth=0), "depth must be a whole number"),
        ("torchvision/resnet18", dict(embed_dim=3), "'torchvision/resnet18' takes no embed_dim"),
        ("torchvision/resnet_18", {}, "unknown torchvision model .* resnet18"),
        ("torchvision/resnet18", dict(img_size=2), "no features of more than one place"),
    ],
)
def test_what_cannot_be_built_is_said_by_name(name, options, message):
    with pytest.raises(UsageError, match=message):
        named_sizes(name, **options)


@pytest.mark.parametrize("family", ["timm", "torchvision"])
def test_a_library_that_is_not_there(family, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, family, None)
    with pytest.raises(UsageError, match=f"needs the library {family}: pip install {family}"):
        named_sizes(f"{family}/resnet18")
