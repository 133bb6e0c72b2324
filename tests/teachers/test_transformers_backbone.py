"""Vision models of transformers that are no plain ViT, by folder, against their own forward passes."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from eva_fast.errors import UsageError
from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
from eva_fast.teachers import load_teacher
from tests.teachers.backbones import pixels
from tests.weights.networks import random_

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

PLAIN = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=64,
    patch_size=16,
)  # fmt: skip
KINDS = {
    "beit": ("BeitConfig", "BeitModel", PLAIN, 1),
    "dinov3": ("DINOv3ViTConfig", "DINOv3ViTModel", {**PLAIN, "num_register_tokens": 4}, 5),
    "swin": (
        "SwinConfig",
        "SwinModel",
        dict(image_size=64, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[1, 2], window_size=4),
        0,
    ),
    "convnext": (
        "ConvNextConfig", "ConvNextModel", dict(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2), None,
    ),
}  # fmt: skip


def saved(kind, folder):
    config, model, sizes, prefix = KINDS[kind]
    network = random_(getattr(transformers, model)(getattr(transformers, config)(**sizes)))
    network.save_pretrained(folder)
    return network, prefix


@torch.no_grad()
def expected_of(network, prefix, images, statistics=(IMAGENET_MEAN, IMAGENET_STD)):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics)
    out = network(pixel_values=(images / 255 - mean) / std).last_hidden_state
    return out.flatten(2).mT if prefix is None else out[:, prefix:]


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_librarys(tmp_path, kind, caplog):
    network, prefix = saved(kind, tmp_path)
    with caplog.at_level(logging.WARNING, "eva_fast"):
        teacher = load_teacher(tmp_path)
    images = pixels(teacher.input_size)
    expected = expected_of(network, prefix, images)
    torch.testing.assert_close(teacher(images), expected, atol=1e-5, rtol=1e-5)
    assert teacher.grid[0] * teacher.grid[1] == expected.shape[1]
    assert "no preprocessor_config.json" in caplog.text


def test_another_grid_and_normalisation(tmp_path):
    network, prefix = saved("dinov3", tmp_path)
    statistics = dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    teacher = load_teacher(tmp_path, grid=(3, 5))
    assert teacher.input_size == (48, 80)
    images = pixels((48, 80))
    expected = expected_of(network, prefix, images, statistics.values())
    torch.testing.assert_close(teacher(images), expected, atol=1e-5, rtol=1e-5)


def test_a_part_that_is_missing_is_named(tmp_path):
    saved("swin", tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    del state["layernorm.weight"]
    save_file(state, path, {"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks 1 weights of its SwinModel: layernorm\.weight"):
        load_teacher(tmp_path)


def test_what_it_cannot_build(tmp_path):
    """An unknown model, one that needs the folder's own code, one that reads text."""
    saved("convnext", tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    (tmp_path / "own.py").write_text("raise SystemExit('code of the folder ran')")
    for change in (
        {"model_type": "nothing"},
        {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}},
    ):
        path.write_text(json.dumps({**config, **change}))
        with pytest.raises(UsageError, match="transformers cannot load"):
            load_teacher(tmp_path)
    bert = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        vocab_size=9,
    )
    transformers.BertModel(bert).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="holds a BertModel, which takes no images"):
        load_teacher(tmp_path)
