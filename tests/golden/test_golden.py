"""Every golden file within its bounds, and the command that says so of any file."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from tests.golden import FOLDER, check, kind_of, read, worst
from tests.golden.__main__ import main

FILES = sorted(p for p in FOLDER.iterdir() if kind_of(p) and p.suffix != ".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_within_bounds(path):
    rows = list(check(path))
    assert rows and not [row for row in rows if not row.ok]


def altered(path, name, change):
    tensors, meta = read(path)
    change(tensors)
    save_file(tensors, name, meta)
    return str(name)


def test_one_wrong_value_is_found(tmp_path, capsys):
    def change(tensors):
        tensors["grad.blocks.1.attn.q_bias"][3] *= 1.01

    name = altered(FOLDER / "eva_micro.safetensors", tmp_path / "eva_other.safetensors", change)
    assert main([name]) == 1
    off = [line for line in capsys.readouterr().out.splitlines() if line.endswith("OFF")]
    assert off and all("q_bias" in line for line in off)


def test_nan_is_off(tmp_path):
    def change(tensors):
        tensors["patch_features"][0, 0, 0] = torch.nan

    name = altered(FOLDER / "clip_micro.safetensors", tmp_path / "clip_nan.safetensors", change)
    assert main([name]) == 1
    assert worst({"a": 1.0, "b": float("nan"), "c": 2.0})[0] == "b"


@pytest.mark.parametrize("name", ["evaclip_micro.safetensors", "eva_nowhere.safetensors", "x"])
def test_unknown_or_missing(capsys, name):
    assert main([name]) == 1
    assert name in capsys.readouterr().out


def test_as_a_command():
    words = [sys.executable, "-m", "tests.golden", str(FOLDER / "clip_micro.safetensors")]
    run = subprocess.run(words, capture_output=True, text=True, cwd=FOLDER.parents[1])
    assert run.returncode == 0 and "bound" in run.stdout
