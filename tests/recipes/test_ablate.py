"""`eva-fast ablate`: tiny tables, what is kept when it is killed, what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eva_fast.config import Config
from eva_fast.errors import UsageError
from eva_fast.recipes.ablate import run_ablation
from eva_fast.recipes.ablation.budget import Budget, Cost, affordable
from eva_fast.recipes.ablation.rows import ROWS, Row, said_of

pytest.importorskip("matplotlib")
TINY = dict(
    model="eva_ti_patch8_32", embed_dim=24, depth=2, num_heads=2, mlp_hidden=48, batch_size=8,
    codebook_size=16, code_dim=8,
    workers=0, device="cpu", kernels="torch", progress=False, log_every=4,
)  # fmt: skip
SEED_FLOPS = 6e9


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes that differ in colour, with noise."""
    root, g = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for c, name in enumerate(("blue", "red")):
        (root / name).mkdir()
        for i in range(12):
            pixels = g.integers(0, 90, (36, 40, 3))
            pixels[..., 2 * c] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def ablate(out, pictures, **asked):
    options = dict(budget=1.0, seeds=1, flops=SEED_FLOPS, probe=("knn",), rows=("eva", "tokens"))
    return run_ablation(out, {**TINY, "data": str(pictures)}, **{**options, **asked})


@pytest.fixture(scope="module")
def done(tmp_path_factory, pictures):
    out = tmp_path_factory.mktemp("ablation")
    return ablate(out, pictures)


def test_tables_figure_and_json(done):
    found = json.loads((done.out / "ablation.json").read_text())
    assert found == done.tables and found["finished"] and found["val"] == 6
    for row in found["rows"]:
        assert row["flops"] == pytest.approx(SEED_FLOPS, rel=0.2) == row["points"][-1]["flops"]
        assert [p["part"] for p in row["points"]] == [0.25, 0.5, 0.75, 1.0]
        assert all(0 <= p["knn"] <= 100 and p["seeds"] == 1 for p in row["points"])
    names = [row["features"] for row in found["beside"]]
    assert names == ["teacher", "8x8 pixels", "random init"]
    text = (done.out / "ablation.md").read_text()
    assert "## Tokenise?" in text and "## Distil?" not in text and "| teacher |" in text
    assert (done.out / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_done_is_not_done_again(done, pictures):
    before = {path: path.stat().st_mtime_ns for path in done.out.rglob("step_*/state.json")}
    assert ablate(done.out, pictures).tables == done.tables and before
    assert before == {path: path.stat().st_mtime_ns for path in done.out.rglob("step_*/state.json")}


def test_other_options_are_another_ablation(done, pictures):
    with pytest.raises(UsageError, match=r"begun with other options \(seeds: 1 -> 2\)"):
        ablate(done.out, pictures, seeds=2)


def test_a_killed_run_goes_on_to_the_same_scores(tmp_path, done, pictures):
    """Killed without warning in the middle of a run; the same plan, so that nothing is timed."""
    (tmp_path / "plan.json").write_bytes((done.out / "plan.json").read_bytes())
    said = {**TINY, "data": str(pictures)}
    code = (
        "from pathlib import Path; from eva_fast.recipes.ablate import run_ablation\n"
        f"run_ablation(Path({str(tmp_path)!r}), {said!r}, budget=1.0, seeds=1, flops={SEED_FLOPS!r},"
        "probe=('knn',), rows=('eva', 'tokens'))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    checkpoints, deadline = (
        tmp_path / "runs" / "tokens-vqkd-0" / "checkpoints",
        time.monotonic() + 240,
    )
    while not list(checkpoints.glob("step_*[0-9]")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "scores" / "tokens-0.json").exists()
    again = ablate(tmp_path, pictures)
    assert again.tables == done.tables


def test_equal_arithmetic_by_hand():
    """A row with a tokenizer gets no more than one without; minutes become FLOPs."""
    first = Row(name="first", title="", recipe="eva-g14")
    row = Row(name="row", title="", recipe="eva-g14", tokenizer=first)
    alone = Row(name="alone", title="", recipe="eva-g14")
    costs = {
        name: Cost(student=90, teacher=10, step_seconds=1.0, start_seconds=5.0)
        for name in ("first", "row", "alone")
    }
    batch = dict.fromkeys(costs, 2)
    budget = Budget(flops=200 * 160, batch=batch, costs=costs)
    assert (budget.steps(row, first), budget.steps(row, row)) == (40, 120)
    assert budget.steps(alone, alone) == 160 and budget.seconds(alone) == 165
    assert sum(budget.spent(row, part) for part in row.trained) == 200 * 160
    found = affordable(
        (row, alone), costs, batch, seeds=2, seconds=2 * (15 + 320) + 5 * 7, probe_seconds=7.0
    )
    assert found.flops == pytest.approx(200 * 160)
    with pytest.raises(UsageError, match="too small"):
        affordable((row,), costs, batch, seeds=2, seconds=10, probe_seconds=1.0)
    with pytest.raises(UsageError, match="4 steps of first take"):
        Budget(flops=100, batch=batch, costs=costs).steps(row, first)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (dict(rows=("evil",)), "no row 'evil': there are eva, "),
        (dict(seeds=0), "seeds must be at least 1"),
        (dict(budget=0), "budget must be above 0"),
        (dict(probe=("svm",)), "unknown probe 'svm'"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_use(tmp_path, pictures, asked, says):
    with pytest.raises(UsageError, match=says):
        ablate(tmp_path / "out", pictures, **asked)
    assert not (tmp_path / "out").exists()


def test_what_each_row_sets_cannot_be_said(tmp_path):
    with pytest.raises(UsageError, match="steps is set for each row"):
        run_ablation(tmp_path, {"steps": 3}, budget=1, seeds=1)
    with pytest.raises(UsageError, match="unknown option 'batch'"):
        run_ablation(tmp_path, {"batch": 3}, budget=1, seeds=1)


def test_what_was_said_is_what_is_no_default():
    config = Config.from_options({"lr": 2e-3, "flip": 0.5, "out": Path("x"), "data": "photos"})
    assert said_of(config) == {"lr": 2e-3, "data": "photos"}


def test_every_row_has_the_optimiser_of_its_recipe():
    for row in ROWS:
        for part in row.trained:
            config = Config.from_options(part.options({"data": "photos"}))
            published = Config.from_options({"recipe": part.recipe})
            assert config.objective.objective == published.objective.objective
            assert config.optim.betas == published.optim.betas
            assert config.optim.lr == Config().optim.lr
