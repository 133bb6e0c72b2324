"""Names, metadata and configurations beside weights that no network can have: one error, no memory."""

import json

import pytest
import torch
from safetensors.torch import save_file

from eva_fast.errors import UsageError
from eva_fast.evaluation.students import load_student
from eva_fast.model import create_model
from eva_fast.teachers import load_teacher
from eva_fast.teachers.clip import ClipConfig, ClipTower
from eva_fast.weights import code_model, read, write_student
from eva_fast.weights.blocks import count_blocks

CPU = torch.device("cpu")
SIZES = dict(
    img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_hidden=32, predict_dim=4
)


def test_blocks_are_counted():
    names = ["blocks.0.a", "blocks.1.a", "blocks.1.b", "other.7"]
    assert count_blocks(names, r"blocks\.(\d+)\.") == 2
    assert count_blocks(names, r"layers\.(\d+)\.") == 0


@pytest.mark.parametrize("number", ["1000000000", "9" * 5000])
def test_a_block_that_no_file_has(tmp_path, little_memory, number):
    """One name of it would build a network for hours."""
    write_student(create_model(**SIZES), tmp_path / "sound.safetensors")
    sound = read(tmp_path / "sound.safetensors")
    tensors = {**sound, f"blocks.{number}.norm1.weight": torch.ones(1)}
    save_file(tensors, tmp_path / "x.safetensors", {"sizes": json.dumps(SIZES)})
    for load in (lambda path: load_student(path, CPU), load_teacher):
        with pytest.raises(UsageError, match="its names speak of block"):
            load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("heads", ["x", "-2", "0", "9" * 50, "1.5"])
def test_heads_that_are_none(tmp_path, heads):
    write_student(create_model(**SIZES), tmp_path / "sound.safetensors")
    sound = read(tmp_path / "sound.safetensors")
    sizes = json.dumps({**SIZES, "num_heads": heads})
    save_file(dict(sound), tmp_path / "x.safetensors", {"sizes": sizes})
    with pytest.raises(UsageError, match="heads"):
        load_student(tmp_path / "x.safetensors", CPU)


@pytest.mark.parametrize(
    "said",
    ["[", "3", "{}", '{"student": 3}', '{"student": {"depth": 1000000000}, "codes": 1000000000}'],
)
def test_a_tokenizer_that_lies_about_its_sizes(tmp_path, little_memory, said):
    tensors = {"quantize.embedding.weight": torch.ones(4, 2)}
    save_file(tensors, tmp_path / "x.safetensors", {"sizes": said})
    weights = read(tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match=r"sizes|more blocks|not whole"):
        code_model(weights, weights.path)


@pytest.fixture
def folder(tmp_path):
    config = ClipConfig(
        width=16, layers=1, heads=2, mlp_hidden=32, patch_size=16, grid=(2, 2), dim=8
    )
    state = ClipTower(config, config.grid).state_dict()
    save_file({f"visual.{name}": t for name, t in state.items()}, tmp_path / "model.safetensors")
    return tmp_path


VISION = {
    "num_attention_heads": 2, "hidden_act": "gelu", "image_size": 32, "layer_norm_eps": 1e-5,
    "hidden_size": 16, "model_type": "clip_vision_model",
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": "x"}, {"num_attention_heads": -2}, {"num_attention_heads": 10**30},
        {"hidden_act": []}, {"image_size": "big"}, {"image_size": [1, 2, 3]}, {"image_size": {}},
        {"layer_norm_eps": "x"}, {"layer_norm_eps": -1.0}, {"layer_norm_eps": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_a_configuration_that_no_network_has(folder, change):
    assert load_teacher_with(folder, VISION) is not None
    with pytest.raises(UsageError, match=r"the configuration beside .*model\.safetensors"):
        load_teacher_with(folder, {**VISION, **change})


def load_teacher_with(folder, vision):
    (folder / "config.json").write_text(json.dumps({"vision_config": vision}))
    return load_teacher(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", '{"a": 1' + "0" * 5000 + "}"])
def test_a_configuration_that_is_none(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"config\.json (is no JSON|must hold a JSON object)"):
        load_teacher(folder)


@pytest.mark.parametrize(
    "argument", ["checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg"]
)
def test_a_configuration_that_names_other_files(tmp_path, argument):
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "resnet10t", "model_args": {argument: "/elsewhere/x.pth"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=f"not built with {argument}=, which names other files"):
        load_teacher(tmp_path)


@pytest.mark.parametrize(
    "text, why",
    [
        ("model: 1", "name no student: model is 1"),
        ("model: [a]", "name no student"),
        ("model: eva_ti_patch16_96\nnum_heads: x", "num_heads must be a whole number"),
        ("model: nobody", "unknown model"),
        ("- 1", "heads cannot be told"),
        ("model: &a [*a]", "contains itself"),
    ],
)
def test_a_run_s_configuration_that_names_no_student(tmp_path, text, why):
    """It lies beside the weights of another's file, and is asked for the heads alone."""
    write_student(create_model(**SIZES), tmp_path / "sound.safetensors")
    save_file(dict(read(tmp_path / "sound.safetensors")), tmp_path / "model.safetensors")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match=why):
        load_student(tmp_path / "model.safetensors", CPU)
