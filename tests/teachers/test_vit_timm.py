"""Vision transformers of timm, and of DINOv2's authors, whose own features timm gives."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
from eva_fast.teachers import load_teacher
from tests.teachers.backbones import pixels
from tests.teachers.vits import HALF, close, dinov2, normalised
from tests.weights.networks import random_

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
@pytest.mark.parametrize("registers", [False, True], ids=["plain", "registers"])
def test_dinov2_by_its_authors(tmp_path, registers, prefix):
    model, state = dinov2(registers)
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save({prefix + name: value for name, value in state.items()}, path)
    images = pixels((56, 56))
    with torch.no_grad():
        expected = model.forward_features(normalised(images, IMAGENET_MEAN, IMAGENET_STD))
    close(load_teacher(path)(images), expected[:, 1 + 4 * registers :])


TIMM = {
    "vit": ("vit_tiny_patch16_224", dict(img_size=48, num_classes=5)),
    "no class token": (
        "vit_tiny_patch16_224",
        dict(img_size=48, class_token=False, global_pool="avg", fc_norm=False),
    ),
    "norm of the mean": ("vit_tiny_patch16_224", dict(img_size=48, global_pool="avg", num_classes=5)),
    "registers": ("vit_small_patch14_reg4_dinov2", dict(img_size=56)),
    "distilled": ("deit_tiny_distilled_patch16_224", dict(img_size=48)),
    "patch 32, layer scale": ("vit_tiny_patch16_224", dict(img_size=96, patch_size=32, init_values=0.1)),
}  # fmt: skip


@pytest.mark.parametrize("kind, options", TIMM.values(), ids=TIMM)
@pytest.mark.parametrize("module", [False, True], ids=["plain", "DataParallel"])
def test_timm_without_a_name(tmp_path, kind, options, module, caplog):
    """Neither the file's name nor a configuration says which model it is."""
    model = random_(timm.create_model(kind, depth=2, **options))
    state = {("module." if module else "") + k: v for k, v in model.state_dict().items()}
    save_file(state, tmp_path / "mine.safetensors")
    with caplog.at_level(logging.WARNING, "eva_fast"):
        teacher = load_teacher(tmp_path / "mine.safetensors")
    size = options["img_size"]
    images = pixels((size, size))
    scaled = "ls1" in " ".join(state)
    statistics = (IMAGENET_MEAN, IMAGENET_STD) if scaled else (HALF, HALF)
    with torch.no_grad():
        expected = model.forward_features(normalised(images, *statistics))
    close(teacher(images), expected[:, model.num_prefix_tokens :])
    assert "timm/NAME:FILE" in caplog.text


def test_the_timm_tower_of_an_open_clip_file(tmp_path, caplog):
    """SigLIP as open_clip saves it; its configuration says how images are normalised."""
    options = dict(depth=2, img_size=48, patch_size=12, num_classes=0, act_layer="gelu_tanh")
    model = random_(timm.create_model("vit_base_patch16_siglip_224", **options))
    state = {f"visual.trunk.{name}": value for name, value in model.state_dict().items()}
    state["text.token_embedding.weight"] = torch.zeros(3, 4)
    save_file(state, tmp_path / "open_clip_model.safetensors")
    statistics = dict(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": statistics}))
    images = pixels((48, 48))
    teacher = load_teacher(tmp_path)
    with torch.no_grad():
        expected = model.forward_features(normalised(images, *statistics.values()))
    close(teacher(images), expected)
    assert "assuming activation gelu_tanh. A config.json" in caplog.text


def test_timm_folder_is_timms_own(tmp_path):
    """With a configuration the library itself builds and runs it."""
    model = random_(timm.create_model("vit_tiny_patch16_224", depth=2, img_size=48))
    timm.models.save_for_hf(model, tmp_path)
    images = pixels((48, 48))
    config = model.pretrained_cfg
    with torch.no_grad():
        expected = model.forward_features(normalised(images, config["mean"], config["std"]))[:, 1:]
    close(load_teacher(tmp_path)(images), expected)


@pytest.mark.parametrize("authors", [False, True], ids=["timm", "DINOv2's authors"])
def test_gated_mlps_without_a_name(tmp_path, authors):
    options = dict(depth=2, embed_dim=64, num_heads=1, img_size=56, num_classes=0, mlp_ratio=4)
    model = random_(timm.create_model("vit_giant_patch14_dinov2", **options))
    state = dict(model.state_dict())
    if authors:
        state = {n.replace("fc1", "w12").replace("fc2", "w3"): t for n, t in state.items()}
        state["mask_token"] = torch.zeros(1, 64)
    save_file(state, tmp_path / "mine.safetensors")
    images = pixels((56, 56))
    with torch.no_grad():
        expected = model.forward_features(normalised(images, IMAGENET_MEAN, IMAGENET_STD))[:, 1:]
    close(load_teacher(tmp_path / "mine.safetensors")(images), expected)
