"""Exported students in timm: the printed lines run, every tensor arrives, the features are equal."""

import json

import pytest
import torch
from PIL import Image

from eva_fast import weights
from eva_fast.layers.inputs import normalise
from eva_fast.teachers import load_teacher
from eva_fast.weights import naming, read, read_student
from tests.weights.interop import every_size, exported, tokens_of
from tests.weights.networks import TIMM_STUDENT, close, same, student

timm = pytest.importorskip("timm")


@torch.no_grad()
def check(ours, theirs):
    same(theirs.state_dict(), naming.timm.EVA.write(ours.official_state_dict()))
    assert not theirs.training
    images, tokens = tokens_of(ours)
    close(theirs.forward_features(images), tokens)
    close(theirs(images), tokens[:, 1:].mean(1))
    (last,) = theirs.forward_intermediates(
        images, indices=1, norm=True, output_fmt="NLC", intermediates_only=True
    )
    close(last, tokens[:, 1:])


@every_size
def test_timm_file(tmp_path, sizes):
    ours, space, written = exported(tmp_path / "timm.safetensors", "timm", sizes)
    check(ours, space["model"])
    held = read(written.path)
    assert not any(name.startswith(("mask_token", "lm_head")) for name in held)


@every_size
def test_hub_folder(tmp_path, sizes):
    ours, space, _ = exported(tmp_path / "hf", "hf", sizes)
    check(ours, space["model"])
    assert space["model"].pretrained_cfg["mean"] == [0.48145466, 0.4578275, 0.40821073]


def test_from_the_hub(tmp_path, monkeypatch):
    """The folder's files as the hub's cache holds a repository, without a network."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    ours = student()
    folder = weights.export(ours, tmp_path / "hf", "hf").path
    place = tmp_path / "cache" / "models--someone--eva-tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots").mkdir()
    folder.rename(place / "snapshots" / ("0" * 40))
    theirs = timm.create_model(
        "hf-hub:someone/eva-tiny", pretrained=True, cache_dir=tmp_path / "cache"
    )
    check(ours, theirs.eval())


def test_a_classifier_on_top_is_timms_own(tmp_path):
    """Whoever fine-tunes asks for classes: the rest still arrives."""
    ours = student()
    folder = weights.export(ours, tmp_path / "hf", "hf").path
    tuned = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7).eval()
    images, tokens = tokens_of(ours)
    with torch.no_grad():
        close(tuned.forward_features(images), tokens)
        assert tuned(images).shape == (2, 7)


def test_fine_tuning_with_timms_own_conversion(tmp_path):
    """As docs/weights.md says: the official file is right with `fc_norm`, wrong without."""
    ours = student()
    images, tokens = tokens_of(ours)
    file = weights.export(ours, tmp_path / "official.safetensors").path
    with torch.no_grad():
        tuned = timm.create_model(
            "eva_giant_patch14_224", num_classes=37, pretrained=True,
            pretrained_cfg_overlay=dict(file=str(file)), **TIMM_STUDENT,
        ).eval()  # fmt: skip
        close(tuned.fc_norm(tuned.forward_features(images)), tokens)
        for options in (dict(global_pool=""), dict(use_fc_norm=False)):
            wrong = timm.create_model(
                "eva_giant_patch14_224", num_classes=37, pretrained=True,
                pretrained_cfg_overlay=dict(file=str(file)), **TIMM_STUDENT, **options,
            ).eval()  # fmt: skip
            assert (wrong.forward_features(images) - tokens).abs().max() > 0.1


def test_every_hidden_width_is_made_again(tmp_path):
    """timm cuts width times ratio off to a whole number; the ratio is chosen so that it is ours."""
    from eva_fast.model import ModelSizes
    from eva_fast.weights.formats.timm import timm_arguments

    for width in (66, 176, 1408):
        for hidden in range(1, 3 * width):
            sizes = ModelSizes(embed_dim=width, num_heads=1, mlp_hidden=hidden)
            assert int(width * timm_arguments(sizes)["mlp_ratio"]) == hidden


def test_what_was_exported_is_read_again(tmp_path):
    """Exactly, but for what other libraries have no place for: sizes and heads too."""
    ours = student(embed_dim=66, num_heads=3)
    for format in ("timm", "hf", "hf-vit", "open_clip"):
        path = tmp_path / (format + ("" if format in weights.FOLDERS else ".safetensors"))
        state, metadata = read_student(weights.export(ours, path, format).path)
        expected = ours.official_state_dict()
        for name in ("mask_token", "lm_head.weight", "lm_head.bias"):
            del expected[name]
        same(state, expected)
        if format != "timm":
            assert metadata["num_heads"] == "3"


def test_an_exported_student_is_a_teacher(tmp_path):
    ours = student()
    folder = weights.export(ours, tmp_path / "hf", "hf").path
    images, tokens = tokens_of(ours)
    close(load_teacher(folder)(images), tokens[:, 1:])


def test_images_are_prepared_as_in_training(tmp_path):
    folder = weights.export(student(), tmp_path / "hf", "hf").path
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    image = torch.randint(256, (48, 48, 3), dtype=torch.uint8)
    found = prepare(Image.fromarray(image.numpy()))
    torch.testing.assert_close(found, normalise(image.permute(2, 0, 1)[None])[0])


def test_a_path_with_quotes_and_spaces(tmp_path):
    ours, space, _ = exported(tmp_path / 'it\'s a "run" ü' / "hf", "hf", {})
    check(ours, space["model"])


def test_the_folder_is_json_that_timm_writes_too(tmp_path):
    folder = weights.export(student(), tmp_path / "hf", "hf").path
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    timm.models.save_for_hf(model, tmp_path / "theirs")
    theirs = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config["architecture"] == theirs["architecture"]
    shared = config["pretrained_cfg"].keys() & theirs["pretrained_cfg"].keys()
    assert {"input_size", "mean", "std", "crop_pct", "interpolation"} <= shared
    for name in shared:
        assert config["pretrained_cfg"][name] == theirs["pretrained_cfg"][name], name
