"""Runs of masked autoencoders, of features and of pixels: resume, skipped steps, what is handed on."""

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
from eva_fast.model import MaeEncoder
from eva_fast.objectives import open_objective
from eva_fast.objectives.pixels import _as_images, _unnormalised, pixel_targets
from eva_fast.recipes.export import export
from eva_fast.train import TrainState, TrainStep
from eva_fast.train.resolve import setting_of

TINY = dict(
    data="builtin", model="eva_ti_patch8_32", embed_dim=32, depth=2, num_heads=2, mlp_hidden=64,
    decoder_dim=16, decoder_depth=1, decoder_heads=2, device="cpu", workers=0, progress=False,
)  # fmt: skip
RUN = dict(TINY, kernels="torch", batch_size=8, accumulate=2, ema=0.9, log_every=1, lr=3e-3)
RUN |= dict(steps=12, checkpoint_every=4, teacher="hog")
KILLED = f"""
import os, signal, sys
import eva_fast
from eva_fast.objectives import mae, pixels

steps = 0
def after_step(self, module, applied):
    global steps
    steps += 1
    if steps == 10:
        os.kill(os.getpid(), signal.SIGKILL)

mae.Mae.after_step = pixels.Pixels.after_step = after_step
eva_fast.pretrain(objective=sys.argv[1], out=sys.argv[2], **{RUN!r})
"""


@pytest.fixture(scope="module", params=["mae", "pixels"])
def trained(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "run"
    return request.param, eva_fast.pretrain(objective=request.param, out=out, **RUN)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run(trained):
    name, run = trained
    found = lines(run.out)
    assert sum(r["loss"] for r in found[-3:]) < sum(r["loss"] for r in found[:3])
    for record in found:
        assert record["gain"] == pytest.approx(record["baseline_loss"] - record["loss"])
    if name == "pixels":  # of normalised patches, which no constant tells from their mean
        assert found[-1]["baseline_loss"] == pytest.approx(1, abs=0.1)
    assert isinstance(run.model, MaeEncoder)
    assert Image.open(run.picture).size[0] > 3 * 192
    weights = load_file(run.weights)
    assert "blocks.1.attn.qkv.bias" in weights and "pos_embed" in weights
    assert not [name for name in weights if "decoder" in name or "mask_token" in name]
    assert load_file(run.out / "model_ema.safetensors").keys() == weights.keys()


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_bytes(trained, tmp_path):
    name, run = trained
    done = subprocess.run([sys.executable, "-c", KILLED, name, str(tmp_path)], env=os.environ)
    assert done.returncode == -signal.SIGKILL
    so_far = load_file(export(tmp_path, tmp_path / "so_far.safetensors").path)
    assert so_far.keys() == load_file(run.weights).keys()
    again = eva_fast.pretrain(objective=name, out=tmp_path, resume="auto", **RUN)
    for file in ("model.safetensors", "model_ema.safetensors", "picture.png"):
        assert (again.out / file).read_bytes() == (run.out / file).read_bytes()
    timeless = ("step", "loss", "grad_norm", "baseline_loss")
    a, b = ([[r[k] for k in timeless] for r in lines(r.out)] for r in (again, run))
    assert a == b


def test_the_encoder_is_timms_vit(trained, tmp_path):
    """Strictly loaded, from a finished run and from a checkpoint; features within 1e-6."""
    timm = pytest.importorskip("timm")
    name, run = trained
    statistics = {"mae": (), "pixels": (IMAGENET_MEAN, IMAGENET_STD)}[name]
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    written = export(run.out, tmp_path / "vit.safetensors", format="timm")
    assert load_file(written.path).keys() == load_file(run.weights).keys()
    space: dict = {}
    exec(written.snippet, space)
    theirs = space["model"]
    assert type(theirs) is timm.models.vision_transformer.VisionTransformer
    theirs.load_state_dict(load_file(written.path), strict=True)
    student = load_student(run.weights, torch.device("cpu"))
    checkpoint = export(run.checkpoint, tmp_path / "again.safetensors")
    again = load_student(checkpoint.path, torch.device("cpu"))
    with torch.no_grad():
        expected = theirs.forward_features(normalise(images, torch.float32, *statistics))
        for model in (student, again, run.model):
            found = model.forward_features(images)
            assert (found - expected).norm() <= 1e-6 * expected.norm()
    assert torch.equal(student.norm.weight, run.model.norm.weight)


def test_it_teaches(trained):
    """A run as the teacher of another: its patch features, by its own statistics."""
    teacher = eva_fast.load_teacher(trained[1].out, grid=(4, 4))
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = trained[1].model.forward_features(images)[:, 1:]
    torch.testing.assert_close(teacher(images), expected, rtol=0, atol=1e-5)


def test_other_formats_are_refused(trained, tmp_path):
    with pytest.raises(ValueError, match="format hf is of EVA's student; MAE's encoder is written"):
        export(trained[1].out, tmp_path / "folder", format="hf")


@pytest.mark.slow
def test_it_is_evaluated(trained, tmp_path):
    result = evaluate(trained[1].out, probe=["knn"], teacher="none", out=tmp_path / "eval.json")
    names = [row.features for row in result.rows]
    assert names[0] == "student" and result.sizes["embed_dim"] == 32


def test_it_starts_from_weights(trained, tmp_path):
    name, run = trained
    options = dict(RUN, steps=1, lr=0.0, min_lr=0.0, warmup_lr=0.0, init_from=run.weights)
    again = eva_fast.pretrain(objective=name, out=tmp_path / "run", **options)
    expected, found = load_file(run.weights), load_file(again.weights)
    for key in expected:
        if not key.endswith("qkv.bias"):  # the key's third, which changes nothing, starts at 0
            assert torch.equal(found[key], expected[key]), key


def test_accumulation_gives_the_same_step(trained, tmp_path):
    options = dict(RUN, steps=2, warmup_lr=1e-3, ema=0.0)
    whole, parts = (
        eva_fast.pretrain(
            objective=trained[0], out=tmp_path / str(n), **{**options, "accumulate": n}
        )
        for n in (1, 4)
    )
    for name in ("loss", "baseline_loss"):
        assert parts.metrics[name] == pytest.approx(whole.metrics[name], abs=1e-5)
    assert parts.metrics["grad_norm"] == pytest.approx(whole.metrics["grad_norm"], rel=1e-4)


class Features(nn.Module):
    """A teacher that is never asked."""

    dim, grid = 8, (4, 4)


@pytest.mark.parametrize("name", ["mae", "pixels"])
def test_a_step_that_is_not_finite_changes_nothing(name):
    setting = setting_of(Config.from_options(dict(TINY, objective=name, ema=0.9)))
    objective, teacher = open_objective(name), None if name == "pixels" else Features()
    torch.manual_seed(0)
    module = objective.build(setting, teacher)
    batch, target = objective.example(setting, teacher, 6)
    state = TrainState.begin(setting, objective, module, teacher, None)
    answers = iter([target, torch.full((6 * 12, 8 if teacher else 192), torch.nan), target])
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


@pytest.mark.parametrize("norm_pix", [False, True])
def test_the_picture_puts_pixels_where_they_were(norm_pix):
    images = torch.randint(256, (2, 3, 12, 12), dtype=torch.uint8)
    every = torch.arange(9, dtype=torch.int32).expand(2, -1)
    rows = pixel_targets(images, every, 4, norm_pix=norm_pix)
    if norm_pix:
        assert rows.mean(-1).abs().max() < 1e-6
        torch.testing.assert_close(rows.var(-1), torch.ones(2, 9), rtol=0, atol=1e-4)
    else:
        assert torch.equal(_unnormalised(_as_images(rows, 4, 3, (3, 3))), images)


@pytest.mark.parametrize("objective", ["mae", "pixels"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mask_count=16), "mask_count must be between 1 and 15"),
        (dict(mask_count=0), "mask_count must be between 1 and 15"),
        (dict(mask_min_block=2), "mask_min_block is of masks in blocks"),
        (dict(decoder_heads=3), "decoder_dim 16, decoder_depth 1, decoder_heads 3"),
        (dict(decoder_depth=0), "decoder_depth 0"),
        (dict(embed_dim=30, num_heads=3), "needs? a width that 4 divides"),
        (dict(model="beit_ti_patch8_32"), "write vit_ti_patch8_32 for beit_ti_patch8_32"),
        (dict(model="eva_ti_patch8_36"), "img_size 36 is not a multiple"),
    ],
)
def test_bad_options_are_refused_before_training(objective, options, message, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        eva_fast.pretrain(objective=objective, out=out, **{**TINY, "steps": 1, **options})
    assert not (out / "metrics.jsonl").exists()


def test_a_teacher_of_another_grid_is_refused(tmp_path):
    options = dict(TINY, patch_size=16, steps=1, teacher=Features())
    with pytest.raises(ValueError, match="a 4x4 grid, the student's 2x2"):
        eva_fast.pretrain(objective="mae", out=tmp_path / "run", **options)
