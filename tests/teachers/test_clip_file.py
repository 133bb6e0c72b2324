"""OpenAI's files of CLIP give their own features, and files that do not fit are told."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.teachers.clips import SIZES, check, images, load
from tests.teachers.openai_tower import Clip, randomise

# OpenAI ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gelu", ["quick", "exact"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_openai_torchscript(tmp_path, gelu, half):
    from tests.teachers.openai_tower import QuickGELU

    model = randomise(Clip(**SIZES, gelu=QuickGELU if gelu == "quick" else nn.GELU))
    model = model.half() if half else model
    torch.jit.script(model).save(tmp_path / "ViT-tiny.pt")
    teacher = load(tmp_path / "ViT-tiny.pt")
    assert teacher.tower.config.heads == 2  # 176 / 64 would be no whole number: read from the file
    with torch.no_grad():
        check(teacher, model.double()(images().double()))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_openai_traced(tmp_path):
    """A trace keeps no Python attributes: heads follow from the width, QuickGELU from the kind."""
    model = randomise(Clip(**{**SIZES, "width": 128}))
    torch.jit.trace(model, images()).save(tmp_path / "ViT-tiny.pt")
    with torch.no_grad():
        check(load(tmp_path / "ViT-tiny.pt"), model.double()(images().double()))


def test_openai_on_another_storage_layout(tmp_path):
    """A tensor that is a view into a shared storage is read with its offset and strides."""
    model = randomise(Clip(**SIZES))
    visual = model.visual
    shared = torch.randn(24, 176 + 3)
    visual.proj = nn.Parameter(shared[:, 3:].T)
    torch.jit.script(model).save(tmp_path / "views.pt")
    with torch.no_grad():
        check(load(tmp_path / "views.pt"), model.double()(images().double()))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "checkpoint"])
def test_openai_state_dict(tmp_path, legacy, nested):
    sizes = {**SIZES, "width": 128, "heads": 2}
    model = randomise(Clip(**sizes))
    state = model.state_dict()
    if nested:
        state = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    path = tmp_path / "clip.pt"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    with torch.no_grad():
        check(load(path), model.double()(images().double()))


# All ---------------------------------------------------------------------------------------------


def tower_state(**changes):
    model = randomise(Clip(**{**SIZES, "width": 128, **changes}))
    return {k: v.clone() for k, v in model.state_dict().items() if k.startswith("visual.")}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("visual.ln_post.weight"), "missing 1: ln_post.weight"),
        (lambda s: s.pop("visual.conv1.weight"), "lacks 'conv1.weight'"),
        (lambda s: s.pop("visual.positional_embedding"), "positional_embedding"),
        (
            lambda s: s.update({"visual.transformer.resblocks.0.ls_1.gamma": torch.ones(128)}),
            "unknown 1: transformer.resblocks.0.ls_1.gamma",
        ),
        (lambda s: s.update({"visual.ln_pre.bias": torch.ones(5)}), r"ln_pre.bias is \[5\]"),
        (lambda s: s.update({"visual.positional_embedding": torch.ones(8, 128)}), "7 patches"),
        (lambda s: s.update({"visual.conv1.weight": torch.ones(128, 3, 12, 13)}), "convolution"),
    ],
    ids=["missing", "no_conv", "no_pos", "layer_scale", "shape", "not_square", "conv"],
)
def test_wrong_keys(tmp_path, change, message):
    state = tower_state()
    change(state)
    save_file(state, tmp_path / "tower.safetensors")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "tower.safetensors")


def test_unknown_heads(tmp_path):
    save_file(tower_state(width=176), tmp_path / "tower.safetensors")
    with pytest.raises(ValueError, match="number of heads is unknown.*num_attention_heads"):
        load(tmp_path / "tower.safetensors")
    for heads, message in (("3", "3 heads"), ("x", "no whole number")):
        save_file(tower_state(width=176), tmp_path / "bad.safetensors", {"heads": heads})
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    "state, message",
    [
        ({"visual.layer1.0.conv1.weight": torch.ones(1)}, "CLIP ResNet"),
        ({"visual.trunk.blocks.0.attn.qkv.weight": torch.ones(1)}, "timm/NAME:FILE"),
        ({"a.b": torch.ones(1), "c": torch.ones(1)}, "its keys: a.b, c.*vision_model"),
    ],
    ids=["resnet", "timm_tower", "other"],
)
def test_other_networks(tmp_path, state, message):
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "weights.safetensors")


def test_unsuitable_configurations(tmp_path):
    save_file(tower_state(), tmp_path / "open_clip_model.safetensors")
    config = tmp_path / "open_clip_config.json"
    for text, message in (
        ("{", "is no JSON"),
        ("[]", "JSON object"),
        ('{"model_cfg": {"vision_cfg": {"timm_model_name": "x"}}}', "timm_model_name"),
        ('{"model_cfg": {"vision_cfg": {"layers": [3, 4]}}}', "ResNet"),
        ('{"preprocess_cfg": {"mean": [1]}}', "three numbers"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            load(tmp_path)
    config.unlink()
    (tmp_path / "config.json").write_text('{"hidden_act": "relu", "num_attention_heads": 2}')
    with pytest.raises(ValueError, match="quick_gelu or gelu, not 'relu'"):
        load(tmp_path)
