"""What the stages note, at micro sizes on the CPU; the whole command once."""

import json
import subprocess
import sys
import weakref

import pytest
import torch

from bench.harness import Variant
from bench.session import notes, plan, steps
from bench.session.child import Bench
from bench.session.notes import Notes
from bench.session.runner import ROOT
from bench.session.stages import attention, ceilings, profile
from bench.shapes import check_shape


@pytest.fixture
def bench(tmp_path):
    return Bench(notes=Notes(tmp_path, "test"), seconds=60.0)


def found(bench, kind):
    return [f for f in notes.read(bench.out) if f["kind"] == kind]


def test_ceilings(bench):
    ceilings.run(bench)
    copy, *products = found(bench, "ceiling")
    assert copy["bytes_per_second"] > 1e6 and not found(bench, "failure")
    assert all(f["flops"][way] > 0 for f in products for way in ("forward", "dx", "dw"))


def test_attention_is_compared_with_float64(bench):
    attention.run(bench)
    rows = {(f["implementation"], f["dtype"]): f for f in found(bench, "attention")}
    assert ("math", "float32") in rows and not found(bench, "failure")
    for (_, dtype), f in rows.items():
        assert max(f["error"]) < {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
        assert f["forward_us"] > 0 and f["backward_us"] > 0


def test_profile(bench):
    profile.run(bench)
    (f,) = found(bench, "profile")
    assert f["busy_ms"] > 0 and f["top"][0]["ms"] >= f["top"][-1]["ms"]


def test_summary_of_a_profile():
    """Two steps; kernels that overlap are busy once; a gap of 6 us counts, one of 1 us does not."""
    events = [(0, 10, "a"), (5, 10, "b"), (16, 4, "a"), (26, 10, "b")]
    found = profile.summary(events, steps=2)
    assert found["busy_ms"] * 2 * 1e3 == 15 + 4 + 10
    assert found["gap_ms"] * 2 * 1e3 == pytest.approx(1 + 6) and found["gaps"] == 0.5
    assert [(k["name"], k["ms"] * 2e3, k["calls"]) for k in found["top"]] == [
        ("b", 20, 1.0), ("a", 14, 1.0),
    ]  # fmt: skip


class Memory:
    """Builds variants that take some of a device's memory; eva_fast and tuned fit side by side."""

    def __init__(self):
        self.size = {"eva_fast": 3, "tuned": 3, "reference": 5, "compile": 7, "huge": 9}
        self.built = []

    def make(self, name, shape, kit, state):
        used = sum(self.size[held] for held, call in self.built if call() is not None)
        if name == "broken":
            raise RuntimeError("no such kernel")
        if used + self.size[name] > 8:
            raise torch.OutOfMemoryError("out of memory")

        def call():
            return torch.zeros(()), None

        self.built.append((name, weakref.ref(call)))
        return Variant(call)


def test_variants_that_do_not_fit_side_by_side_are_timed_in_groups(bench, monkeypatch):
    memory = Memory()
    monkeypatch.setattr(steps.step, "make", memory.make)
    names = ("eva_fast", "tuned", "broken", "reference", "compile", "huge")
    steps.race(bench, check_shape(), names, 50.0)
    timed = [f["variant"] for f in found(bench, "step") if "missing" not in f]
    # the first two; the reference beside eva_fast; compile by itself
    assert timed == ["eva_fast", "tuned", "eva_fast", "reference", "compile"]
    (missing,) = [f for f in found(bench, "step") if "missing" in f]
    assert (missing["variant"], missing["missing"]) == ("huge", "out of memory")
    (failure,) = found(bench, "failure")
    assert "no such kernel" in failure["error"] and bench.failures == 1


def test_a_race_without_time_builds_the_first_and_says_what_it_left(bench, monkeypatch):
    monkeypatch.setattr(steps.step, "make", Memory().make)
    steps.race(bench, check_shape(), ("eva_fast", "tuned"), 0.0)
    assert [f["variant"] for f in found(bench, "step")] == ["eva_fast"]
    (skipped,) = found(bench, "skipped")
    assert skipped["what"].endswith("tuned")


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    """`eva-fast bench run` ends in time and leaves JSON, Markdown and the findings."""
    command = [sys.executable, "-m", "eva_fast", "bench", "run", "--budget", "20", "--out"]
    done = subprocess.run(
        [*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (page,) = tmp_path.glob("*.md")
    data = json.loads(page.with_suffix(".json").read_text())
    outcomes = {f["name"]: f["outcome"] for f in data["findings"] if f["kind"] == "outcome"}
    assert list(outcomes) == [stage.name for stage in plan.stages(gpu=False)]
    assert "## Stages" in page.read_text() and "smoke: " in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--budget", "3"], "--budget must be at least 20 seconds, got 3"),
        (["--budget", "30", "--out", "/proc/nothing"], "--out /proc/nothing"),
    ],
    ids=["budget", "folder"],
)
def test_wrong_use_is_one_line(words, says):
    done = subprocess.run(
        [sys.executable, "-m", "bench.session", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


def test_budget_belongs_to_benchmark():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "bench/", "--budget", "30"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 4 and "--budget SECONDS goes with --benchmark" in done.stderr
