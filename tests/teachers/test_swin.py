"""A Swin as a teacher, by file and folder, under every naming, against timm's network."""

import json

import pytest
import torch
from safetensors.torch import save_file

from eva_fast.errors import UsageError
from eva_fast.teachers import load_teacher
from eva_fast.teachers.swin import SwinTeacher
from eva_fast.weights.naming import swin
from tests.teachers.backbones import close, imagenet, pixels

timm = pytest.importorskip("timm", reason="timm is not installed")
NAME = "swin_tiny_patch4_window7_224"
OPTIONS = dict(
    img_size=128, window_size=8, embed_dim=8, depths=(2, 2, 2), num_heads=(1, 2, 4), num_classes=0
)
"""Maps of 32, 16 and 8 tokens: windows, shifted windows, one window."""


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = timm.create_model(NAME, **OPTIONS).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def features(model, images):
    with torch.no_grad():
        return model.forward_features(imagenet(images)).flatten(1, 2)


def official(model):
    return swin.V1.write(swin.TIMM_V1.read(model.state_dict(), ""))


def test_official_file(network, tmp_path):
    """With what the official code keeps beside weights, in its wrapper."""
    state = official(network) | {
        "layers.0.blocks.1.attn_mask": torch.zeros(16, 64, 64),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(64, 64, dtype=torch.int64),
        "head.weight": torch.zeros(10, 32),
    }
    torch.save({"model": state}, tmp_path / "swin.pth")
    teacher = load_teacher(tmp_path / "swin.pth")
    assert isinstance(teacher, SwinTeacher)
    assert (teacher.grid, teacher.dim, teacher.input_size) == ((8, 8), 32, (128, 128))
    images = pixels((128, 128))
    expected = features(network, images)
    close(teacher(images), expected)
    index = torch.tensor([[1, 5, 63], [0, 2, 9]])
    rows = torch.cat([row[own] for row, own in zip(expected, index)])
    close(teacher(images, index), rows)


def test_esvit_checkpoint(network, tmp_path):
    """Names behind `module.` in an entry of a training run's file."""
    entry = {f"module.{k}": v for k, v in official(network).items()}
    torch.save({"student": entry, "epoch": 3}, tmp_path / "checkpoint.pth")
    images = pixels((128, 128))
    close(load_teacher(tmp_path / "checkpoint.pth")(images), features(network, images))


def test_timm_file_folder_and_name(network, tmp_path):
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    images = pixels((128, 128))
    expected = features(network, images)
    config = {"architecture": NAME, "model_args": OPTIONS}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in (tmp_path, tmp_path / "model.safetensors", f"timm/{NAME}:{tmp_path}"):
        teacher = load_teacher(name)
        assert isinstance(teacher, SwinTeacher)
        close(teacher(images), expected)


def test_other_grids(network, tmp_path, caplog):
    """More windows where they fill the map, but not of a stage that was one window: then its features
    are interpolated."""
    two = timm.create_model(NAME, **OPTIONS | dict(img_size=256)).eval()
    two.load_state_dict(network.state_dict())
    save_file(network.state_dict(), tmp_path / "x.safetensors")
    images = pixels((256, 256))
    close(load_teacher(tmp_path / "x.safetensors", grid=16)(images), features(two, images))
    with caplog.at_level("INFO"):
        teacher = load_teacher(tmp_path / "x.safetensors", grid=(5, 5))
    assert "interpolated to (5, 5)" in caplog.text
    assert teacher.input_size == (128, 128) and teacher(images).shape == (len(images), 25, 32)


def test_a_stage_smaller_than_the_windows_knows_no_larger_map(tmp_path):
    options = OPTIONS | dict(depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))  # the last: 4 tokens
    model = timm.create_model(NAME, **options).eval()
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    assert load_teacher(tmp_path / "x.safetensors").input_size == (128, 128)
    assert load_teacher(tmp_path / "x.safetensors", grid=8).input_size == (128, 128)


def test_half_precision(network, tmp_path):
    save_file(network.state_dict(), tmp_path / "x.safetensors")
    images = pixels((128, 128))
    expected = features(network, images)
    found = load_teacher(tmp_path / "x.safetensors", dtype=torch.bfloat16)(images)
    assert found.dtype == torch.float32 and (found - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("layers.1.blocks.1.attn.proj.bias"), "missing 1"),
        (lambda s: s.pop("layers.1.blocks.0.attn.relative_position_bias_table"), "no whole Swin"),
        (
            lambda s: s.update(
                {"layers.2.blocks.0.attn.relative_position_bias_table": torch.zeros(7, 4)}
            ),
            "square window",
        ),
    ],
    ids=["missing", "no table", "odd table"],
)
def test_a_file_that_is_not_whole(network, tmp_path, spoil, message):
    state = official(network)
    spoil(state)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match=message):
        load_teacher(tmp_path / "x.safetensors")
