"""Names: what is cached needs no network, what is not ends in one clear error."""

import json
import socket
import sys
import urllib.request

import pytest
import torch
from safetensors.torch import save_file

from eva_fast.errors import UsageError
from eva_fast.teachers import load_teacher
from tests.conftest import GOLDEN
from tests.teachers.openai_tower import Clip, randomise

SIZES = dict(size=48, patch=12, width=128, heads=2, layers=2, hidden=512, dim=24)


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """No test of this file may reach a server, and caches are empty."""

    def refuse(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    huggingface_hub = pytest.importorskip("huggingface_hub")
    cache = tmp_path / "hub"
    cache.mkdir()
    original = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **options: original(name, cache_dir=cache, **options),
    )
    return cache


def cached(cache, repository, files):
    """A repository as the Hugging Face cache holds it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    for name, content in files.items():
        if isinstance(content, dict) and any(torch.is_tensor(v) for v in content.values()):
            save_file({k: v.clone() for k, v in content.items()}, snapshot / name)
        else:
            (snapshot / name).write_text(json.dumps(content))


def clip_state():
    return randomise(Clip(**SIZES)).state_dict()


def features(teacher):
    return teacher(torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def expected(tmp_path):
    """What the tower gives from a plain file."""
    torch.manual_seed(0)
    state = clip_state()
    path = tmp_path / "openai.safetensors"
    save_file(state, path, {"activation": "quick_gelu"})
    return state, features(load_teacher(path))


@pytest.mark.parametrize(
    "name, repository",
    [
        ("openai/ViT-L-14", "timm/vit_large_patch14_clip_224.openai"),
        ("openai/ViT-L/14", "timm/vit_large_patch14_clip_224.openai"),
        ("open_clip/ViT-L-14:openai", "timm/vit_large_patch14_clip_224.openai"),
    ],
)
def test_openai_from_the_cache(no_network, expected, name, repository):
    """The library's configuration decides the kind of GELU; sizes come from the file."""
    pytest.importorskip("open_clip")
    state, wanted = expected
    cached(no_network, repository, {"open_clip_model.safetensors": state})
    teacher = load_teacher_with_heads(name)
    torch.testing.assert_close(features(teacher), wanted)


def load_teacher_with_heads(name):
    """The small tower stands for ViT-L, whose configuration says 16 heads of 64."""
    import open_clip

    original = open_clip.get_model_config
    small = {"vision_cfg": dict(width=128, layers=2, patch_size=12, image_size=48)}
    open_clip.get_model_config = lambda model: small if original(model) else None
    try:
        return load_teacher(name)
    finally:
        open_clip.get_model_config = original


def test_hugging_face_from_the_cache(no_network, expected):
    state, wanted = expected
    config = {"hidden_act": "quick_gelu", "num_attention_heads": 2, "model_type": "clip"}
    cached(no_network, "org/model", {"model.safetensors": state, "config.json": config})
    teacher = load_teacher("hf/org/model")
    assert teacher.name == "hf/org/model"
    torch.testing.assert_close(features(teacher), wanted)


def test_hugging_face_name_of_openai(no_network, expected):
    state, wanted = expected
    cached(no_network, "openai/clip-vit-large-patch14", {"model.safetensors": state})
    torch.testing.assert_close(features(load_teacher("openai/clip-vit-large-patch14")), wanted)


def test_timm_from_the_cache(no_network):
    timm = pytest.importorskip("timm")
    state = timm.create_model("mobilenetv3_small_050").state_dict()
    cached(no_network, "timm/mobilenetv3_small_050.lamb_in1k", {"model.safetensors": state})
    assert load_teacher("timm/mobilenetv3_small_050.lamb_in1k", grid=2).dim == 288


def test_torchvision_from_the_cache(no_network, tmp_path, monkeypatch):
    from torchvision.models import get_model

    monkeypatch.setattr("eva_fast.weights.reader.check_hash", lambda path: None)
    folder = tmp_path / "torch" / "checkpoints"
    folder.mkdir(parents=True)
    state = get_model("squeezenet1_1").state_dict()
    torch.save(state, folder / "squeezenet1_1-b8a52dc0.pth")
    for name in ("torchvision/squeezenet1_1", "torchvision/squeezenet1_1:IMAGENET1K_V1"):
        assert load_teacher(name, grid=2).dim == 512


@pytest.mark.parametrize(
    "name",
    [
        "openai/ViT-L-14",
        "open_clip/ViT-B-32:laion2b_s34b_b79k",
        "open_clip/ViT-B-32:laion400m_e31",
        "hf/org/missing",
        "timm/resnet18.a1_in1k",
        "timm/resnet18",
        "torchvision/resnet18",
        "torchvision/resnet18:IMAGENET1K_V1",
    ],
)
def test_not_cached_and_no_network(name):
    with pytest.raises(
        ValueError, match=r"not cached on this machine and cannot be reached .*no n"
    ):
        load_teacher(name, grid=2)


def test_offline_by_request(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        load_teacher("hf/org/missing")


@pytest.mark.parametrize(
    "name, message",
    [
        ("hogg", "unknown teacher 'hogg'; possible teachers: 'builtin'; 'hog'"),
        ("", "unknown teacher ''"),
        ("openai/ViT-L-15", "unknown open_clip model 'ViT-L-15'; for example: .*ViT-L-14"),
        ("openai/RN50", "CLIP ResNet"),
        ("openai/ViT-H-14", "unknown weights of ViT-H-14 'openai'"),
        ("open_clip/ViT-L-14", "needs a tag.*laion2b_s32b_b82k"),
        ("open_clip/nothing", "needs a tag, open_clip/MODEL:TAG; tags are listed by open_clip"),
        ("open_clip/ViT-L-14:laion", "unknown weights of ViT-L-14 'laion'"),
        ("open_clip/ViT-B-16-SigLIP:webli", "no plain CLIP"),
        ("hf/model", "named hf/ORG/NAME"),
        ("timm/resnet181", "unknown timm model 'resnet181'; for example: .*resnet18"),
        (
            "timm/resnet18.nonsense",
            "unknown timm weights 'resnet18.nonsense'; for example: resnet18",
        ),
        ("torchvision/mobilenet_v4", "unknown torchvision model .*mobilenet_v"),
        ("torchvision/resnet50:IMAGENET1K_V3", "unknown weights .*IMAGENET1K_V2"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        load_teacher(name, grid=2)


@pytest.mark.parametrize(
    "name",
    ["nowhere.pt", "some/folder", "torchvision/resnet18:nowhere.pth", "timm/resnet18:nowhere.pth"],
)
def test_missing_files(name):
    with pytest.raises(FileNotFoundError, match=r"nowhere|some/folder"):
        load_teacher(name, grid=2)


@pytest.mark.parametrize("name", ["timm/resnet18", "open_clip/ViT-L-14:openai", "openai/ViT-L-14"])
def test_library_missing(name, monkeypatch):
    for module in ("timm", "open_clip"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match="pip install (timm|open_clip_torch)"):
        load_teacher(name)


def test_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no weight file; expected"):
        load_teacher(tmp_path)
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"holds a.pt, b.pt; expected one weight file"):
        load_teacher(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": []}')
    with pytest.raises(ValueError, match="no index of weight files"):
        load_teacher(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}')
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "x")):
        load_teacher(tmp_path)


@pytest.mark.parametrize("grid", [0, (4,), (4, -1), (2, 2.5), "ab"])
def test_bad_grid(grid):
    with pytest.raises(ValueError, match="grid must be two positive whole numbers"):
        load_teacher("hog", grid=grid)


def test_bad_dtype():
    with pytest.raises(ValueError, match="floating-point"):
        load_teacher(GOLDEN / "clip_micro.safetensors", dtype=torch.int32)


@pytest.mark.parametrize("wrong", [3, None, b"hog", ["hog"]])
def test_what_is_neither_name_nor_path(wrong):
    with pytest.raises(
        UsageError, match=f"a name, a path or a module, not a {type(wrong).__name__}"
    ):
        load_teacher(wrong)
