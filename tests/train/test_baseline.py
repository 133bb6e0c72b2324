"""What a constant prediction scores, beside the loss: in the step, over micro-batches, on resume."""

import json

import pytest
import torch
import torch.nn.functional as F

import eva_fast
from eva_fast.objectives.eva import Eva
from eva_fast.train.baseline import Baseline, verdict
from tests.train.fakes import CPU, Squares, ask, batch, make_step

TINY = dict(
    model="eva_ti_patch16_96", depth=1, embed_dim=32, num_heads=2, mlp_hidden=32, batch_size=4,
    log_every=1, workers=0, device="cpu", kernels="torch", progress=False, teacher="hog",
)  # fmt: skip


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_scored_by_the_mean_of_the_steps_before_it(accumulate):
    step = make_step(accumulate=accumulate)
    seen = []
    for number in range(4):
        rows = ask(batch(number))
        step(batch(number), 1e-2)
        found = step.state.sums.take()["baseline_loss"]
        if number:
            constant = torch.stack(seen).mean(0)
            assert found == pytest.approx(float((rows - constant).square().mean()), rel=1e-5)
        seen.append(rows.mean(0))
    torch.testing.assert_close(step.state.baseline.mean, torch.stack(seen).mean(0))


def test_the_first_step_is_scored_by_its_own_mean():
    step, rows = make_step(), ask(batch(0))
    step(batch(0), 1e-2)
    own = (rows - rows.mean(0)).square().mean()
    assert step.state.sums.take()["baseline_loss"] == pytest.approx(float(own), rel=1e-5)


def test_a_skipped_step_leaves_the_mean_alone():
    poisoned = [False]
    step = make_step(ask=lambda b: ask(b) * (float("nan") if poisoned[0] else 1))
    step(batch(0), 1e-2)
    before = [t.clone() for t in step.state.baseline.tensors().values()]
    poisoned[0] = True
    assert not step(batch(1), 1e-2).applied
    for a, b in zip(before, step.state.baseline.tensors().values(), strict=True):
        assert torch.equal(a, b)
    poisoned[0] = False
    step(batch(2), 1e-2)
    expected = (ask(batch(0)).mean(0) + ask(batch(2)).mean(0)) / 2
    torch.testing.assert_close(step.state.baseline.mean, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_eva_s_constant_is_the_best_one(dtype):
    target = (torch.randn(64, 8) + torch.arange(8) / 4).to(dtype)
    baseline = Baseline(Eva(), 8, CPU)
    best = baseline.score(target, 1.0)  # by its own mean
    for other in (target.double().mean(0), *torch.randn(20, 8).double()):
        assert best <= -F.cosine_similarity(target.double(), other[None]).mean() + 1e-6


def test_objectives_without_one_and_runs_without_a_teacher_leave_it_out():
    class Silent(Squares):
        constant_loss = eva_fast.objectives.Objective.constant_loss

    assert Baseline.of(Silent(), 4, CPU) is None
    assert Baseline.of(Squares(), None, CPU) is None
    step = make_step(Silent())
    step(batch(0), 1e-2)
    assert "baseline_loss" not in step.state.sums.take()


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_has_the_same_baseline(tmp_path):
    keys = ("loss", "baseline_loss", "gain")
    eva_fast.pretrain(out=tmp_path / "whole", steps=6, warmup_epochs=0.0, **TINY)
    for options in ({"checkpoint_every": 3, "steps": 3}, {"steps": 6, "resume": "auto"}):
        eva_fast.pretrain(
            out=tmp_path / "parts", lr=1e-3, min_lr=1e-3, warmup_epochs=0.0, **TINY, **options
        )
    parts, whole = lines(tmp_path / "parts"), lines(tmp_path / "whole")
    assert [r["baseline_loss"] for r in parts] == [r["baseline_loss"] for r in whole]
    for record in parts:
        assert set(keys) <= record.keys()
        assert record["gain"] == record["baseline_loss"] - record["loss"]


def test_a_run_without_gain_says_so(tmp_path, caplog):
    eva_fast.pretrain(out=tmp_path / "run", steps=2, lr=0.0, min_lr=0.0, **TINY)
    assert "the student learned nothing that shows" in caplog.text


def test_verdict_only_where_it_is_known():
    assert verdict({"loss": 1.0}) is None
    assert verdict({"loss": None, "baseline_loss": None, "gain": None}) is None
    assert verdict({"loss": -0.5, "baseline_loss": -0.3, "gain": 0.2}) is None
    poor = {"loss": -0.3, "baseline_loss": -0.3, "gain": 0.0}
    assert "no better" in verdict(poor) and "whiten" in verdict(poor)
    assert "no better" in verdict(poor, taught=False) and "teacher" not in verdict(
        poor, taught=False
    )
