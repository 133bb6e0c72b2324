"""What the benchmarks' harness promises: disagreement fails, pairs are pairs, memory is a peak."""

import pytest
import torch

from bench.harness import (
    Case,
    Disagreement,
    Settings,
    Variant,
    check_agreement,
    count,
    differentiable,
    measure,
    peak_memory,
    time_case,
)

QUICK = Settings(seconds=0.01, rounds=4, least_rounds=4, sample_seconds=1e-5)


def make(**functions):
    x = torch.arange(6.0).view(2, 3).requires_grad_()
    return differentiable("square", "both", "2x3", "cpu", functions, [x])


def test_equal_variants_pass():
    check_agreement(make(reference=lambda x: x * x, eva_fast=lambda x: x**2))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda x: x * x + 0.1, "value 0 of eva_fast differs"),
        (lambda x: x * x.detach(), "value 1 of eva_fast differs"),
        (lambda x: (x * x)[:1], "has shape"),
        (lambda x: x * x * float("nan"), "differs"),
    ],
    ids=["output", "gradient", "shape", "nan"],
)
def test_a_variant_that_disagrees_fails_before_it_is_timed(wrong, says):
    case = make(reference=lambda x: x * x, eva_fast=wrong)
    with pytest.raises(Disagreement, match=says):
        measure(case, QUICK)


def test_variants_take_turns_and_ratios_pair_them(monkeypatch):
    """A clock that the machine slows down by ten between rounds: paired ratios do not see it."""
    order, slow = [], iter([1.0, 10.0, 1.0, 10.0, 1.0, 10.0])
    state = {"slow": 1.0}
    cost = {"reference": 3.0, "eva_fast": 1.0}

    class Clock:
        def __init__(self, device, processor):
            self.calls = 0

        def __call__(self, call, repeats):
            name = call()
            order.append(name)
            if order.count(name) > 2 and len(order) % 2 == 1:
                state["slow"] = next(slow, 1.0)
            return cost[name] * state["slow"]

    monkeypatch.setattr("bench.harness.DeviceClock", Clock)
    case = Case(
        subject="clock",
        mode="forward",
        shape="",
        device="cpu",
        variants={name: Variant(lambda name=name: name) for name in cost},
    )
    found = time_case(case, QUICK)
    timed = order[len(cost) :]  # behind the one warm-up call of each
    assert len(timed) == 8 and set(timed[:2]) == set(timed[2:4]) == set(cost)
    ratio = found["eva_fast"]["speedup"]["reference"]
    assert ratio["median"] == pytest.approx(3.0)
    assert ratio["q1"] <= ratio["median"] <= ratio["q3"]
    assert "speedup" in found["reference"] and found["reference"]["speedup"] == {}


def test_backward_alone_repeats_the_same_gradient():
    x = torch.randn(4, 4, requires_grad=True)
    functions = {"reference": lambda x: (x @ x).tanh()}
    case = differentiable("square", "backward", "4x4", "cpu", functions, [x])
    first, second = (case.variants["reference"].call() for _ in range(2))
    assert torch.equal(first[0], second[0])


def test_peak_memory_counts_what_lives_at_once():
    kib = 1024

    def call():
        a = torch.empty(256 * kib, dtype=torch.uint8)
        b = torch.empty(128 * kib, dtype=torch.uint8)
        del a
        c = torch.empty(64 * kib, dtype=torch.uint8)
        return b, c

    assert peak_memory(call, "cpu") == pytest.approx(384 * kib, abs=4 * kib)


def test_count_of_a_call():
    a, b = torch.ones(8, 4), torch.ones(4, 2)
    flops, size = count(lambda: (a @ b) + 1)
    assert flops == 2 * 8 * 4 * 2 + 16
    assert size == 4 * (32 + 8 + 16) + 4 * 32


def test_entry_has_every_variant_with_its_baselines():
    case = make(reference=lambda x: x * x, tuned=lambda x: x.square(), eva_fast=lambda x: x**2)
    entry = measure(case, QUICK)
    assert entry["kind"] == "measured" and entry["baseline"] == "reference"
    assert set(entry["variants"]["eva_fast"]["speedup"]) == {"reference", "tuned"}
    assert set(entry["variants"]["tuned"]["speedup"]) == {"reference"}
    for variant in entry["variants"].values():
        assert variant["seconds"]["p20"] <= variant["seconds"]["p50"] <= variant["seconds"]["p80"]
        assert variant["first_call_seconds"] > 0 and variant["rounds"] == 4
