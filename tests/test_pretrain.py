"""Whole runs: what they leave behind, exact resume after SIGKILL, clean stops, clear errors."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import eva_fast
from eva_fast.train import checkpoint
from eva_fast.train.guard import NonFiniteError

TINY = dict(
    model="eva_ti_patch8_32",
    embed_dim=32,
    depth=2,
    num_heads=2,
    mlp_hidden=48,
    batch_size=8,
    workers=0,
    device="cpu",
    kernels="torch",
    progress=False,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(40):
        small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((60, 50), Image.BICUBIC).save(folder / f"{i:02d}.png")
    return folder


def flags(**options):
    words = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return words


def start(**options):
    command = [sys.executable, "-m", "eva_fast", "pretrain", *flags(**{**TINY, **options})]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_it_promises(images, tmp_path):
    result = eva_fast.pretrain(
        data=images, out=tmp_path / "run", steps=12, log_every=4, picture_every=6, ema=0.9, **TINY
    )
    names = {p.name for p in result.out.iterdir()}
    assert {
        *("metrics.jsonl", "config.yaml", "environment.json", "checkpoints", "picture.png"),
        *("pictures", "model.safetensors", "model_ema.safetensors"),
    } <= names
    assert [record["step"] for record in lines(result.out)] == [4, 8, 12]
    assert result.metrics["loss"] < result.metrics["first_loss"]
    assert Image.open(result.picture).size[0] > 100
    assert len(list((result.out / "pictures").iterdir())) == 2
    assert checkpoint.newest(result.out / "checkpoints") == result.checkpoint
    weights = load_file(result.weights)
    own = result.model.official_state_dict()
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[k], own[k]) for k in own)
    again = eva_fast.config.Config.from_yaml(result.out / "config.yaml")
    assert again.optim.steps == 12 and again.model.embed_dim == 32


def test_a_run_says_that_the_kernels_are_not_built(images, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("eva_fast.native.available", lambda: False)
    eva_fast.pretrain(data=images, out=tmp_path / "run", steps=1, **TINY)
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["cpp_kernels"] is False
    assert "C++ kernels are not built" in caplog.text


def test_same_seed_same_weights_other_seed_other_weights(images, tmp_path):
    def weights(name, **options):
        return load_file(
            eva_fast.pretrain(data=images, out=tmp_path / name, steps=3, **TINY, **options).weights
        )

    a, b, c = weights("a"), weights("b"), weights("c", seed=1)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["lm_head.weight"], c["lm_head.weight"])


def test_accumulation_gives_the_same_step(images, tmp_path):
    options = dict(data=images, steps=3, drop_path=0.0, warmup_lr=1e-3, **TINY)
    whole = eva_fast.pretrain(out=tmp_path / "whole", **options)
    parts = eva_fast.pretrain(out=tmp_path / "parts", accumulate=4, **options)
    assert parts.metrics["loss"] == pytest.approx(whole.metrics["loss"], abs=1e-5)
    assert parts.metrics["grad_norm"] == pytest.approx(whole.metrics["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_killed_runs_end_with_the_same_weights(images, tmp_path):
    """SIGKILL at random moments, again and again, against a run that is left alone."""
    options = dict(data=images, steps=60, checkpoint_every=7, log_every=5, ema=0.9)
    whole = start(out=tmp_path / "whole", **options)
    assert whole.wait(120) == 0, whole.stderr.read()

    rng, out, kills = random.Random(0), tmp_path / "killed", 0
    while True:
        run = start(out=out, resume="auto", **options)
        while run.poll() is None and not (out / "metrics.jsonl").exists():
            time.sleep(0.02)  # the first run: let it begin, or nothing is killed but imports
        try:
            run.wait(rng.uniform(0, 1) if kills == 0 else rng.uniform(2.5, 6))
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.wait()
            kills += 1
            if kills < 5:
                continue
            run = start(out=out, resume="auto", **options)
            assert run.wait(120) == 0, run.stderr.read()
        break
    assert kills > 0
    for name in ("model.safetensors", "model_ema.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    timeless = ("step", "loss", "lr", "grad_norm", "skipped_steps", "bad_images")
    a, b = ([{k: r[k] for k in timeless} for r in lines(d)] for d in (out, tmp_path / "whole"))
    assert a == b


def test_sigterm_writes_a_checkpoint_and_the_run_goes_on(images, tmp_path):
    out = tmp_path / "run"
    options = dict(data=images, log_every=1, out=out)
    run = start(steps=100_000, **options)
    while run.poll() is None and not ((out / "metrics.jsonl").exists() and lines_so_far(out) > 2):
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    stdout, stderr = run.communicate(timeout=60)
    assert run.returncode == 0, stderr
    assert "--resume auto" in stdout and "SIGTERM" in stdout
    step = checkpoint.read_state(checkpoint.newest(out / "checkpoints"))["step"]
    assert step >= 3
    result = eva_fast.pretrain(**options, resume="auto", steps=step + 2, **TINY)
    assert [r["step"] for r in lines(out)] == list(range(1, step + 3))
    assert result.stopped_by is None


def lines_so_far(out):
    return (out / "metrics.jsonl").read_text().count("\n")


class NanTeacher(torch.nn.Module):
    """Targets that are not numbers from the third call on."""

    dim, name = 8, "nan"

    def __init__(self, grid=(4, 4), after=2):
        super().__init__()
        self.grid, self.calls, self.after = grid, 0, after

    def forward(self, images, mask=None):
        self.calls += 1
        rows = (len(images), 16, 8) if mask is None else (mask.numel(), 8)
        return torch.full(rows, float("nan")) if self.calls > self.after else torch.ones(rows)


def test_a_run_without_finite_losses_stops_and_keeps_its_weights(images, tmp_path):
    with pytest.raises(NonFiniteError, match="10 steps in a row"):
        eva_fast.pretrain(
            data=images, teacher=NanTeacher(), out=tmp_path, steps=50, log_every=1, **TINY
        )
    assert [r["loss"] is None for r in lines(tmp_path)] == [False] * 2 + [True] * 9
    steady = dict(teacher=NanTeacher(after=1_000), steps=14, log_every=1, resume="auto", **TINY)
    result = eva_fast.pretrain(data=images, out=tmp_path, **steady)  # the cause is mended
    assert result.metrics["step"] == 14 and result.metrics["skipped_steps"] == 10


def test_a_resumed_run_takes_new_settings_of_the_optimiser(images, tmp_path):
    def weights(name, **changes):
        options = dict(data=images, out=tmp_path / name, lr=1e-2, **TINY)
        eva_fast.pretrain(steps=2, **options)
        return load_file(
            eva_fast.pretrain(steps=4, resume="auto", **{**options, **changes}).weights
        )

    same, decayed = weights("same"), weights("decayed", weight_decay=100.0)
    assert decayed["mask_token"].norm() < 0.7 * same["mask_token"].norm()
    for name, value in (("betas", (0.5, 0.6)), ("eps", 1.0)):
        other = weights(name, **{name: value})
        assert not torch.equal(other["norm.bias"], same["norm.bias"])


def test_a_finished_run_is_not_overwritten_but_can_be_lengthened(images, tmp_path):
    options = dict(data=images, out=tmp_path / "run", **TINY)
    eva_fast.pretrain(steps=2, **options)
    with pytest.raises(ValueError, match="already holds a run"):
        eva_fast.pretrain(steps=2, **options)
    assert eva_fast.pretrain(steps=2, resume="auto", **options).metrics["step"] == 2
    assert eva_fast.pretrain(steps=4, resume="auto", **options).metrics["step"] == 4
    with pytest.raises(ValueError, match=r"other options \(seed: 0 -> 5\)"):
        eva_fast.pretrain(steps=6, resume="auto", seed=5, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(model="eva_q_patch8_32"), "unknown model"),
        (dict(teacher="dino"), "dino"),
        (dict(teacher="missing/file.pt"), "missing"),
        (dict(data="missing/folder"), "missing"),
        (dict(mask_count=16), "mask_count must be between 1 and 15"),
        (dict(mask_count=0), "mask_count must be between 1 and 15"),
        (dict(mask_min_block=17), "mask_min_block must be between 1 and 16"),
        (dict(kernels="triton", device="cpu"), "'triton' cannot be used: it runs on NVIDIA GPUs"),
        (dict(decode="gpu", device="cpu"), "decode='gpu' needs an NVIDIA GPU"),
        (dict(resume="auto", out=None), "needs out="),
        (dict(num_heads=5), "not divisible by num_heads"),
        (dict(device="cuda"), "no NVIDIA GPU"),
        (dict(init_from="missing.safetensors"), "missing.safetensors"),
        (dict(nonsense=1), "unknown option"),
    ],
)
def test_bad_options_are_refused_before_training(images, tmp_path, options, message):
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("a GPU is here: device='cuda' is right")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        eva_fast.pretrain(
            **{**TINY, "data": images, "out": tmp_path / "run", "steps": 1, **options}
        )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_missing_library_is_named_before_anything_is_written(images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        eva_fast.pretrain(data=images, out=tmp_path / "run", steps=1, track="tensorboard", **TINY)
    assert not (tmp_path / "run").exists()


class Modulus(torch.nn.Module):
    """A trainable teacher of 4x4 patches, as a person may write one."""

    dim, grid = 6, (4, 4)

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Conv2d(3, 6, 8, 8)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, images, mask=None):
        assert not self.training and not torch.is_grad_enabled()
        rows = self.drop(self.embed(images.float() / 255)).flatten(2).transpose(1, 2)
        if mask is None:
            return rows
        return rows.gather(1, mask.long()[..., None].expand(-1, -1, 6)).flatten(0, 1)


def test_a_module_teaches_frozen_and_on_the_student_s_grid_only(images, tmp_path):
    teacher = Modulus()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    eva_fast.pretrain(data=images, teacher=teacher, out=tmp_path / "run", steps=2, **TINY)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    teacher.grid = (16, 16)
    with pytest.raises(ValueError, match="16x16 grid, the student's 4x4"):
        eva_fast.pretrain(data=images, teacher=teacher, out=tmp_path / "no", steps=2, **TINY)
    with pytest.raises(ValueError, match="needs `dim`"):
        eva_fast.pretrain(data=images, teacher=torch.nn.Identity(), out=tmp_path / "no", **TINY)


def test_pictures_and_calibration_bear_the_share_of_bad_images_that_the_run_does(images, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for i, path in enumerate(sorted(images.iterdir())):
        (data / path.name).write_bytes(b"no image" if i % 4 == 0 else path.read_bytes())
    options = dict(data=data, steps=2, whiten=True, **TINY)
    assert eva_fast.pretrain(out=tmp_path / "run", max_bad_share=0.3, **options).picture.is_file()
    with pytest.raises(RuntimeError, match="could not be read"):
        eva_fast.pretrain(out=tmp_path / "strict", max_bad_share=0.2, **options)


def test_large_pictures_are_allowed_by_an_option_also_of_a_run_that_goes_on(images, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(images, data)
    Image.new("RGB", (300, 200), "navy").save(data / "zz.png")
    options = dict(data=data, out=tmp_path / "run", max_bad_share=0.5, **TINY)
    eva_fast.pretrain(steps=6, max_megapixels=0.05, **options)  # more than an epoch
    (line,) = (tmp_path / "run/bad_images.jsonl").read_text().splitlines()
    bad = json.loads(line)
    assert bad["name"].endswith("zz.png") and "max_megapixels=0.05" in bad["reason"]
    eva_fast.pretrain(steps=8, max_megapixels=1, resume="auto", **options)
    assert "max_megapixels: 1" in (tmp_path / "run/config.yaml").read_text()


def test_weights_to_start_from(images, tmp_path):
    first = eva_fast.pretrain(data=images, out=tmp_path / "a", steps=3, **TINY)
    second = eva_fast.pretrain(
        data=images, out=tmp_path / "b", steps=1, warmup_lr=0.0, lr=0.0, min_lr=0.0,
        init_from=first.weights, **TINY,
    )  # fmt: skip
    a, b = load_file(first.weights), load_file(second.weights)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_returned_model_computes_with_the_weights_it_is_given(images, tmp_path):
    """Nothing of the run is left in it: 16-bit copies that the optimiser kept would be stale."""
    options = {**TINY, "kernels": "auto", "precision": "bf16"}
    model = eva_fast.pretrain(data=images, out=tmp_path / "run", steps=2, **options).model
    torch.manual_seed(1)
    sizes = {k: getattr(model.sizes, k) for k in model.sizes.__dataclass_fields__}
    other = eva_fast.create_model(**sizes, compute_dtype=torch.bfloat16).eval()
    model.load_state_dict(other.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.forward_features(pixels), other.forward_features(pixels))
