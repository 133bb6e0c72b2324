"""Swin students as files: written, read, started from, and loaded by timm."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import eva_fast
from eva_fast.errors import UsageError
from eva_fast.evaluation.features import student_features
from eva_fast.evaluation.students import load_student, untrained
from eva_fast.model import SwinSizes, SwinV2, create_model
from eva_fast.weights import export, initialise_swin, naming, write_student

SIZES = SwinSizes(
    img_size=64, embed_dim=12, depths=(2, 1, 2), num_heads=(2, 3, 4), window_size=8, mlp_ratio=3
)
CPU = torch.device("cpu")


def student(seed=0, sizes=SIZES):
    torch.manual_seed(seed)
    model = SwinV2(sizes).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model


def same(model, other):
    own, found = model.state_dict(), other.state_dict()
    return own.keys() == found.keys() and all(torch.equal(v, found[k]) for k, v in own.items())


def test_a_file_is_enough_for_its_student(tmp_path):
    model = student()
    write_student(model, tmp_path / "model.safetensors")
    found = load_student(tmp_path / "model.safetensors", CPU)
    assert found.sizes == SIZES and same(found, model) and not found.training
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    features = student_features(found)(images)
    torch.testing.assert_close(features, model.forward_features(images).mean(1))
    fresh = untrained(found, CPU)
    assert fresh.sizes == SIZES and not same(fresh, model) and same(fresh, untrained(found, CPU))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_timm_loads_it(tmp_path, suffix):
    pytest.importorskip("timm", reason="timm is not installed")
    model = student()
    path = tmp_path / f"model{suffix}"
    written = export(model, path, "timm")
    space = {}
    exec(written.snippet, space)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = model.forward_features(images)
        found = space["model"].forward_features(images)
        assert (found.flatten(1, 2) - tokens).abs().max() < 1e-6 * tokens.abs().max()
        torch.testing.assert_close(
            space["model"](images), tokens.mean(1), rtol=1e-5, atol=1e-6 * tokens.abs().max().item()
        )


def test_official_checkpoint(tmp_path):
    model = student()
    written = export(model, tmp_path / "model.pt", "official")
    state = torch.load(tmp_path / "model.pt", weights_only=True)["model"]
    assert state.keys() == model.state_dict().keys() and "strict=False" in written.snippet


def test_exported_from_a_file_for_other_images(tmp_path):
    """Nothing in the weights knows the image's side."""
    model = student()
    write_student(model, tmp_path / "own.safetensors")
    eva_fast.export(
        tmp_path / "own.safetensors", tmp_path / "x.safetensors", format="official", img_size=128
    )
    found = load_student(tmp_path / "x.safetensors", CPU)
    assert found.sizes.img_size == 128 and same(found, model)


def test_starting_from_a_file(tmp_path):
    """Official names, or timm's without sizes; of other windows too."""
    model = student()
    save_file(naming.swin.TIMM_V2.write(model.state_dict()), tmp_path / "timm.safetensors")
    write_student(model, tmp_path / "own.safetensors")
    for name in ("timm", "own"):
        other = student(1, replace(SIZES, window_size=4))
        initialise_swin(other, tmp_path / f"{name}.safetensors")
        assert same(other, model)


def test_what_cannot_be_read(tmp_path):
    model = student()
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(UsageError, match="does not say its sizes"):
        load_student(tmp_path / "bare.safetensors", CPU)
    wide = student(sizes=SwinSizes(img_size=64, embed_dim=24, window_size=8))
    with pytest.raises(UsageError, match="shape|missing"):
        initialise_swin(wide, tmp_path / "bare.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="does not hold a Swin V2"):
        initialise_swin(model, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="a Swin V2 is written as official or timm"):
        export(model, tmp_path / "folder", "hf")


def test_created_by_name():
    model = create_model("swinv2_tiny_window8_64", embed_dim=12, depth=7, drop_path=0.2)
    assert isinstance(model, SwinV2) and model.sizes.depths == (2, 2, 1, 2)
    assert model.blocks()[-1].drop_path == pytest.approx(0.2)
