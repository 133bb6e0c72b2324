"""A run is the same wherever it is called from, and leaves the caller's torch as it was."""

import multiprocessing
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import eva_fast

TINY = dict(
    model="eva_ti_patch8_32", embed_dim=32, depth=1, num_heads=2, mlp_hidden=48, batch_size=4,
    steps=2, workers=0, device="cpu", kernels="torch", progress=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(8):
        Image.new("RGB", (40, 40), (i * 30, 90, 255 - i * 30)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def usual(images, tmp_path_factory):
    """The weights that the run ends with when nothing is unusual."""
    result = eva_fast.pretrain(images, out=tmp_path_factory.mktemp("usual") / "run", **TINY)
    return load_file(result.weights)


@pytest.fixture
def float64_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def same(result, weights):
    found = load_file(result.weights)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


SURROUNDINGS = {
    "gradients off": lambda: torch.set_grad_enabled(False),
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "meta tensors by default": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_the_weights_are_the_same(images, usual, tmp_path, surroundings):
    with surroundings():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        result = eva_fast.pretrain(images, out=tmp_path / "run", **TINY)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    torch.set_grad_enabled(True)
    same(result, usual)
    pixels = torch.randn(1, 3, 32, 32)
    assert result.model.forward_features(pixels).sum().requires_grad  # it trains on afterwards


@pytest.mark.usefixtures("float64_default")
def test_float64_by_default(images, usual, tmp_path):
    same(eva_fast.pretrain(images, out=tmp_path / "run", **TINY), usual)
    assert torch.get_default_dtype() == torch.float64


def test_the_caller_s_random_numbers_go_on(images, tmp_path):
    draws = lambda: float(torch.rand(())), np.random.random, random.random

    def drawn(run):
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        if run:
            eva_fast.pretrain(images, out=tmp_path / "run", **TINY)
        return [draw() for draw in draws]

    assert drawn(run=True) == drawn(run=False)
    torch.manual_seed(3)
    with pytest.raises(ValueError, match="already holds a run"):
        eva_fast.pretrain(images, out=tmp_path / "run", **TINY)
    assert float(torch.rand(())) == drawn(run=False)[0]


def in_a_daemon(images, out, workers):
    try:
        eva_fast.pretrain(images, out=out, **{**TINY, "workers": workers})
    except ValueError as error:
        raise SystemExit(9 if "workers=0" in str(error) else 1) from None


@pytest.mark.parametrize("workers, code", [(2, 9), (0, 0), (None, 0)])
def test_a_daemonic_process(images, tmp_path, workers, code):
    """It may have no children: told before anything is written; by default it has none."""
    child = multiprocessing.get_context("spawn").Process(
        target=in_a_daemon, args=(images, tmp_path / "run", workers), daemon=True
    )
    child.start()
    child.join(120)
    assert child.exitcode == code
    assert (tmp_path / "run").exists() == (code == 0)


FORKED = """
import multiprocessing, sys
import eva_fast
options = dict(
    data=sys.argv[1], model="eva_ti_patch8_32", embed_dim=32, depth=1, num_heads=2, mlp_hidden=48,
    batch_size=4, steps=2, workers=0, device="cpu", kernels="torch",
)
first = eva_fast.pretrain(out=sys.argv[2] + "/first", **options)
child = multiprocessing.get_context("fork").Process(
    target=eva_fast.pretrain, kwargs=dict(out=sys.argv[2] + "/second", **options), daemon=True
)
child.start()
child.join(100)
child.kill()
eva_fast.pretrain(out=sys.argv[2] + "/third", **options)
sys.exit(child.exitcode)
"""


def test_a_daemonic_process_forked_after_a_run(images, tmp_path):
    """OpenMP's threads, of which there are several here, do not come along in a fork."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(images), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "2"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, *others = (
        load_file(tmp_path / name / "model.safetensors") for name in ("first", "second", "third")
    )
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


TOO_LATE = """
import os, sys, torch
from eva_fast import device, native
from eva_fast.errors import UsageError
native.openmp = lambda: None
with device.undisturbed(torch.device("cpu")):
    pass
child = os.fork()
if child == 0:
    try:
        with device.undisturbed(torch.device("cpu")):
            os._exit(1)
    except UsageError as error:
        os._exit(9 if "'spawn'" in str(error) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_that_could_only_hang_is_refused():
    """Where the OpenMP runtime cannot end its threads before the fork."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", TOO_LATE], env=environment, timeout=100)
    assert done.returncode == 9


def test_16_bit_products_read_the_weights_of_their_step(tmp_path):
    # Autocast keeps its casts of weights while an outer region of it is open: once, that was all
    # of the run, which then learned half as much.
    noise = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), dtype=np.uint8)
    options = {**TINY, "steps": 12, "lr": 3e-3, "min_lr": 3e-3, "teacher": "hog"}
    exact, rounded = (
        load_file(eva_fast.pretrain(list(noise), out=tmp_path / p, precision=p, **options).weights)
        for p in ("fp32", "bf16")
    )
    moved = torch.cat([(exact[name] - rounded[name]).abs().flatten() for name in exact])
    assert moved.mean() < 3e-4  # twelve steps move a weight by up to 0.036
