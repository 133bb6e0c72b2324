"""Weight files of every kind that is read, and those that are none: one clear error."""

import argparse
import datetime
import hashlib
import io
import logging
import os

import pytest
import torch
from safetensors.torch import save_file

from eva_fast.weights import read
from eva_fast.weights.torchscript import read_torchscript
from tests.weights.scripted import Small


def test_torchscript_state_dict(tmp_path):
    model = Small()
    torch.jit.script(model).save(tmp_path / "small.pt")
    weights = read(tmp_path / "small.pt")
    assert weights.kind == "torchscript"
    expected = torch.jit.load(tmp_path / "small.pt").state_dict()
    assert set(weights) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor) and weights[name].dtype == tensor.dtype, name


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_torch_and_safetensors(tmp_path, suffix):
    state = {"a.weight": torch.randn(2, 3), "b": torch.arange(3)}
    torch.save({"model": state, "epoch": 4, "lr": [0.1]}, tmp_path / f"x{suffix}")
    save_file(state, tmp_path / "x.safetensors", {"heads": "2"})
    for name, kind in ((f"x{suffix}", "torch"), ("x.safetensors", "safetensors")):
        weights = read(tmp_path / name)
        assert weights.kind == kind and set(weights) == set(state) and len(weights) == 2
        assert all(torch.equal(weights[k], v) for k, v in state.items())
    assert weights.metadata == {"heads": "2"}


@pytest.mark.parametrize(
    "around",
    [
        ["model"],
        ["module"],
        ["state_dict"],
        ["model", "module"],
        ["module", "model"],
        ["model", "state_dict"],
        ["state_dict_ema"],
        ["model_ema", "module"],
        ["teacher"],
        ["ema", "module"],
        ["net"],
        ["network"],
        ["params"],
        ["params_ema"],
        ["student"],
    ],
    ids=".".join,
)
def test_wrappers(tmp_path, around):
    state = {"a": torch.randn(2)}
    wrapped = state
    for key in reversed(around):
        wrapped = {key: wrapped, "epoch": 3, "optimizer": {"state": {0: torch.zeros(1)}}}
    torch.save(wrapped, tmp_path / "x.pt")
    weights = read(tmp_path / "x.pt")
    assert list(weights) == ["a"] and torch.equal(weights["a"], state["a"])


def test_an_average_is_preferred(tmp_path):
    state = {"model": {"a": torch.zeros(1)}, "model_ema": {"a": torch.ones(1)}}
    torch.save(state, tmp_path / "x.pt")
    assert read(tmp_path / "x.pt")["a"] == 1


def test_one_of_several_is_read_and_said(tmp_path, caplog):
    """DINO's checkpoints hold a student and a teacher, which is the average of students."""
    caplog.set_level(logging.INFO, "eva_fast")
    state = {"student": {"module.a": torch.zeros(1)}, "teacher": {"a": torch.ones(1)}, "epoch": 3}
    torch.save(state, tmp_path / "x.pth")
    assert read(tmp_path / "x.pth")["a"] == 1
    assert "'teacher' is read, not 'student'" in caplog.text and "['student']" in caplog.text


def test_an_entry_without_tensors_is_no_state_dict(tmp_path):
    state = {"params": {"lr": 0.1}, "ema": {"decay": 0.99}, "model": {"a": torch.ones(1)}}
    torch.save(state, tmp_path / "x.pth")
    assert list(read(tmp_path / "x.pth")) == ["a"]


@pytest.mark.parametrize(
    "content, hint",
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "git lfs pull",
        ),
        ("<!DOCTYPE html>\n<html><head>Sign in</head></html>", "a web page.*/resolve/"),
        ("\ufeff  <html lang='en'>gone</html>", "a web page"),
        ('{"error": "Repository not found"}', "it is JSON"),
        ("/annex/objects/MD5E-s10--abcdef.pth\n", "git annex get"),
        ("outs:\n- md5: 0123456789\n  path: x.pth\n", "text and begins with 'outs:'"),
    ],
    ids=["lfs", "html", "html with a mark", "json", "annex", "dvc"],
)
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.bin"])
def test_text_in_place_of_weights(tmp_path, content, hint, name):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=hint):
        read(tmp_path / name)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_prefixes_of_wrapped_modules(tmp_path, prefix, suffix):
    state = {f"{prefix}{name}": torch.ones(1) for name in ("a.weight", "module_b.bias")}
    path = tmp_path / f"x{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    assert set(read(path)) == {"a.weight", "module_b.bias"}


def test_a_prefix_of_some_names_stays(tmp_path):
    save_file({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "x.safetensors")
    assert set(read(tmp_path / "x.safetensors")) == {"module.a", "b"}


def test_options_of_a_training_script_are_harmless(tmp_path):
    """Official checkpoints (EVA, MAE, DeiT) keep their command line beside the weights."""
    nested = argparse.Namespace(a=1, out=tmp_path, device=torch.device("cpu"))
    args = argparse.Namespace(lr=1e-3, betas=(0.9, 0.98), data="/x", nested=nested)
    torch.save({"model": {"a": torch.ones(2)}, "args": args, "epoch": 3}, tmp_path / "x.pth")
    assert torch.equal(read(tmp_path / "x.pth")["a"], torch.ones(2))


def test_a_refused_type_is_named(tmp_path):
    state = {"model": {"a": torch.ones(2)}, "when": datetime.date(2024, 1, 1)}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"besides tensors \(datetime\.date\).*To convert a file"):
        read(tmp_path / "x.pth")


@pytest.mark.parametrize("content", [b"", b"hello", b"<html>not found</html>", b"\x80\x02K\x01."])
def test_no_weight_file(tmp_path, content):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=str(path)):
        read(path)


def test_nothing_in_it(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    save_file({}, tmp_path / "x.safetensors")
    for name in ("x.pt", "x.safetensors"):
        with pytest.raises(ValueError, match="no (state dict|tensors)"):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere.pt")


def test_hash_in_the_name(tmp_path):
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3)}, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    for good in (digest[:8], digest[:16], digest):
        path = tmp_path / f"net-{good}.pth"
        path.write_bytes(buffer.getvalue())
        assert read(path)["w"].shape == (3,)
    wrong = ("a" if digest[0] != "a" else "b") + digest[1:8]
    path = tmp_path / f"net-{wrong}.pth"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=f"sha256 starts with {digest[:8]}.*ends in {wrong}"):
        read(path)
    for plain in ("net-v2.pth", "net-00001.pth", "net.pth"):
        (tmp_path / plain).write_bytes(buffer.getvalue())
        assert "w" in read(tmp_path / plain)


def test_text_tower_is_not_read(tmp_path):
    """Tensors are read one by one: what nobody asks for costs no memory."""
    torch.jit.script(Small()).save(tmp_path / "small.pt")
    tensors, _ = read_torchscript(tmp_path / "small.pt")
    os.remove(tmp_path / "small.pt")
    with pytest.raises(FileNotFoundError):
        tensors["inner.weight"]()
