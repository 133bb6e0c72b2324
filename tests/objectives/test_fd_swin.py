"""Feature Distillation of a Swin: resume, skipped steps, what is handed on, what cannot be."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import eva_fast
from eva_fast.config import Config
from eva_fast.evaluation import evaluate
from eva_fast.evaluation.students import load_student
from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD, normalise
from eva_fast.model import SwinV2
from eva_fast.objectives import open_objective
from eva_fast.recipes.export import export
from eva_fast.train import TrainState, TrainStep
from eva_fast.train.resolve import setting_of

SWIN = dict(model="swinv2_tiny_window4_64", embed_dim=12, depth=7)  # maps of 16, 8, 4 and 2 tokens
TINY = dict(data="builtin", device="cpu", workers=0, progress=False, objective="fd", teacher="hog")
RUN = dict(TINY, kernels="torch", batch_size=8, accumulate=2, ema=0.9, log_every=1, lr=3e-3, **SWIN)
RUN |= dict(steps=6, checkpoint_every=2, drop_path=0.2)
KILLED = f"""
import os, signal, sys
import eva_fast
from eva_fast.objectives.feature_distillation import FeatureDistillation

steps = 0
def after_step(self, module, applied):
    global steps
    steps += 1
    if steps == 5:
        os.kill(os.getpid(), signal.SIGKILL)

FeatureDistillation.after_step = after_step
eva_fast.pretrain(out=sys.argv[1], **{RUN!r})
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return eva_fast.pretrain(out=tmp_path_factory.mktemp("fd") / "run", **RUN)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run(trained):
    found = lines(trained.out)
    assert found[-1]["loss"] < found[0]["loss"]
    for record in found:
        assert record["gain"] == pytest.approx(record["baseline_loss"] - record["loss"])
    assert isinstance(trained.model, SwinV2)
    names = load_file(trained.weights).keys()
    assert "layers.3.blocks.1.attn.logit_scale" in names and "norm.weight" in names
    assert not [name for name in names if "decoder" in name]
    assert load_file(trained.out / "model_ema.safetensors").keys() == names


def test_killed_and_resumed_it_ends_with_the_same_bytes(trained, tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=os.environ)
    assert done.returncode == -signal.SIGKILL
    so_far = load_file(export(tmp_path, tmp_path / "so_far.safetensors").path)
    assert so_far.keys() == load_file(trained.weights).keys()
    again = eva_fast.pretrain(out=tmp_path, resume="auto", **RUN)
    for file in ("model.safetensors", "model_ema.safetensors", "picture.png"):
        assert (again.out / file).read_bytes() == (trained.out / file).read_bytes()


def test_timm_has_its_features(trained, tmp_path):
    """Strictly loaded, from a finished run and from a checkpoint; features within 1e-6."""
    pytest.importorskip("timm")
    images = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8)
    pixels = normalise(images, torch.float32, IMAGENET_MEAN, IMAGENET_STD)
    for source in (trained.out, trained.checkpoint):
        written = export(source, tmp_path / f"{source.name}.safetensors", format="timm")
        space: dict = {}
        exec(written.snippet, space)
        with torch.no_grad():
            expected = trained.model.forward_features(pixels)
            found = space["model"].forward_features(pixels).flatten(1, 2)
        assert (found - expected).norm() <= 1e-6 * expected.norm()
    assert load_student(trained.weights, torch.device("cpu")).sizes == trained.model.sizes


def test_it_is_evaluated(trained, tmp_path):
    for number in range(8):
        place = tmp_path / "data" / str(number % 2) / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (20 * number, 99, 255 * (number % 2))).save(place)
    result = evaluate(
        trained.out, tmp_path / "data", probe=["knn"], teacher="none", out=tmp_path / "eval.json"
    )
    rows = {row.features: row for row in result.rows}
    assert rows["student"].dim == 96 and result.sizes["window_size"] == 4


def test_it_starts_from_weights(trained, tmp_path):
    options = dict(RUN, steps=1, lr=0.0, min_lr=0.0, warmup_lr=0.0, init_from=trained.weights)
    again = eva_fast.pretrain(out=tmp_path / "run", **options)
    expected, found = load_file(trained.weights), load_file(again.weights)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


class Features(nn.Module):
    """A teacher that is never asked."""

    def __init__(self, grid, cls=False, points=("norm",)):
        super().__init__()
        self.dim, self.grid, self.cls, self.points = 8, grid, cls, points


@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_a_step_that_is_not_finite_changes_nothing(kernels):
    setting = setting_of(Config.from_options(dict(TINY, **SWIN, kernels=kernels, ema=0.9)))
    objective, teacher = open_objective("fd"), Features((2, 2))
    torch.manual_seed(0)
    module = objective.build(setting, teacher)
    batch, target = objective.example(setting, teacher, 6)
    assert module(batch.images).shape == target.shape == (6, 4, 8)
    state = TrainState.begin(setting, objective, module, teacher, None)
    answers = iter([target, torch.full_like(target, torch.nan), target])
    step = TrainStep(state, objective, lambda batch: next(answers), clip_grad=3.0)

    def everything():
        moments = [t for s in state.optimizer.state.values() for t in s.values()]
        kept = [*module.state_dict().values(), *moments, *state.ema.weights.values()]
        return [t.clone() for t in (*kept, state.baseline.mean, state.baseline.steps)]

    first = step(batch, rate=1e-2)
    before = everything()
    skipped = step(batch, rate=1e-2)
    assert first.applied and not skipped.applied and skipped.loss.isnan()
    assert all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))
    step(batch, rate=1e-2)
    assert not any(t.isnan().any() for t in everything())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(SWIN, model="swinv2_tiny_window3_64"), "windows of 3 do not fill a map of 16x16"),
        (dict(SWIN, model="swinv2_tiny_window4_72"), "not a multiple of 32"),
        (dict(SWIN, precision="fp8", kernels="auto"), "a Swin computes in 'bf16'"),
        (dict(SWIN, teacher=Features((4, 4))), "a 4x4 grid, the student's 2x2"),
        (dict(SWIN, teacher=Features((2, 2), cls=True)), "asks for no CLS row"),
        (dict(SWIN, teacher=Features((2, 2), points=("proj",))), "asks for features at 'norm'"),
    ],
    ids=["window", "image", "fp8", "grid", "CLS", "point"],
)
def test_what_cannot_be_is_said_before_training(options, message, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        eva_fast.pretrain(out=out, **{**TINY, "steps": 1, **options})
    assert not (out / "metrics.jsonl").exists()
