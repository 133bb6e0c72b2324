"""The objective that docs/extend/objective.md adds from outside, through the public seam alone."""

import importlib
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import eva_fast
from eva_fast.evaluation.students import load_student
from eva_fast.recipes.export import export
from tests.pages.blocks import python_of

OPTIONS = dict(
    data="builtin", model="eva_ti_patch8_32", embed_dim=32, depth=2, num_heads=2, mlp_hidden=48,
    batch_size=8, accumulate=2, workers=0, device="cpu", kernels="torch", progress=False, ema=0.9,
    steps=20, log_every=1, checkpoint_every=6, lr=3e-3,
)  # fmt: skip
KILLED = f"""
import os, signal, sys
import eva_fast, pixels

class Dying(pixels.Pixels):
    steps = 0
    def after_step(self, module, applied):
        super().after_step(module, applied)
        self.steps += 1
        if self.steps == 15:
            os.kill(os.getpid(), signal.SIGKILL)

Dying.__module__, Dying.__qualname__ = "pixels", "Pixels"
eva_fast.pretrain(objective=Dying, out=sys.argv[1], **{OPTIONS!r})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page's first block of code lies as pixels.py."""
    code = python_of("extend/objective.md", 0)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 60
    folder = tmp_path_factory.mktemp("outside")
    (folder / "pixels.py").write_text(code)
    return folder


@pytest.fixture(scope="module")
def Pixels(folder):
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("pixels").Pixels
    finally:
        sys.path.remove(str(folder))
        del sys.modules["pixels"]


@pytest.fixture(scope="module")
def trained(Pixels, tmp_path_factory):
    out = tmp_path_factory.mktemp("pixels") / "run"
    return eva_fast.pretrain(objective=Pixels(), out=out, **OPTIONS)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_without_a_teacher(trained):
    found = lines(trained.out)
    assert sum(r["loss"] for r in found[-5:]) < 0.8 * sum(r["loss"] for r in found[:5])
    assert found[-1]["colours_off"] < found[0]["colours_off"]
    assert Image.open(trained.picture).size[0] > 2 * 208
    again = eva_fast.config.Config.from_yaml(trained.out / "config.yaml").objective.objective
    assert again == "pixels.Pixels object"


def test_what_it_exports_is_a_student_that_others_load(trained):
    student = load_student(trained.weights, torch.device("cpu"))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        student.forward_features(images), trained.model.forward_features(images)
    )
    average = load_file(trained.out / "model_ema.safetensors")
    assert average.keys() == load_file(trained.weights).keys()
    assert not torch.equal(average["norm.weight"], student.norm.weight)


def test_killed_and_resumed_it_ends_with_the_same_bytes(trained, Pixels, folder, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment)
    assert done.returncode == -signal.SIGKILL
    so_far = load_file(export(tmp_path, tmp_path / "so_far.safetensors").path)
    assert so_far.keys() == load_file(trained.weights).keys()
    again = eva_fast.pretrain(objective=Pixels, out=tmp_path, resume="auto", **OPTIONS)
    for name in ("model.safetensors", "model_ema.safetensors", "picture.png"):
        assert (again.out / name).read_bytes() == (trained.out / name).read_bytes()
    timeless = ("step", "loss", "grad_norm", "colours_off")
    a, b = ([[r[k] for k in timeless] for r in lines(r.out)] for r in (again, trained))
    assert a == b


def test_kernels_are_chosen_on_it(Pixels, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = {**OPTIONS, "kernels": "auto", "steps": 2}
    run = eva_fast.pretrain(objective=Pixels, out=tmp_path / "run", **options)
    assert torch.isfinite(torch.tensor([r["loss"] for r in lines(run.out)])).all()


def test_it_cannot_go_on_with_a_run_of_another(trained):
    with pytest.raises(ValueError, match="started with other options"):
        eva_fast.pretrain(objective="eva", out=trained.out, resume="auto", **OPTIONS)


@pytest.mark.parametrize(
    ("given", "message"),
    [("evo", "did you mean 'eva'"), (3, "not int"), (torch.nn.Identity, "not Identity")],
)
def test_what_is_no_objective_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        eva_fast.pretrain(objective=given, out=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()
