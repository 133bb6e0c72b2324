"""What a run settles on: each op of a step raced with its own arguments, unless it is forced."""

import pytest
import torch

from eva_fast import native, ops
from eva_fast.ops import choose, kept
from eva_fast.ops.race import timed_by
from eva_fast.ops.settle import record, settle, take_over

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.skipif(not native.available(), reason="the native library is not built"),
    pytest.mark.usefixtures("own_cache"),
]


def step():
    h = torch.ones(4, 6, requires_grad=True)
    for _ in range(3):
        out = ops.bias_gelu(h, None)
    out.sum().backward()  # an expanded gradient
    ops.bias_gelu(torch.ones(2, 6, dtype=torch.bfloat16), None)


class Clock:
    """Times every candidate with a second, and the favourite with half of one."""

    def __init__(self, favourite):
        self.favourite, self.calls = favourite, []

    def __call__(self, name, run, device):
        run()
        self.calls.append(name)
        return 0.5 if name == self.favourite else 1.0


def test_calls_count_as_often_as_a_step_makes_them():
    with timed_by(Clock("torch")):
        found = settle(step, CPU, {})
    assert found["bias_gelu"] == kept.Choice("torch", {"native": 4e3, "torch": 2e3})
    assert found["bias_gelu_backward"].implementation == "torch"
    assert choose.demanded("bias_gelu") == "torch"
    choose.set_kernels("auto")
    assert choose.demanded("bias_gelu") is None


def test_the_subject_finds_its_choice_again():
    with timed_by(Clock("torch")):
        found = settle(step, CPU, {"batch": 4})
    clock = Clock("native")
    with timed_by(clock):
        assert settle(step, CPU, {"batch": 4}) == found and not clock.calls
        assert settle(step, CPU, {"batch": 8})["bias_gelu"].implementation == "native"


def test_what_is_forced_stays():
    ops.force("bias_gelu", "torch")
    with timed_by(Clock("native")):
        found = settle(step, CPU, {})
    assert {choice.implementation for choice in found.values()} == {"torch"}
    assert choose.implementation("bias_gelu", "cpu") == "torch"
    ops.force("bias_gelu", "auto")
    with timed_by(Clock("native")):
        assert settle(step, CPU, {})["bias_gelu"].implementation == "native"


def adamw_step(sizes):
    """One call of `adamw` over parameters of these sizes, and the parameters."""
    params = [torch.ones(size) for size in sizes]
    lists = [[torch.ones_like(p) for p in params] for _ in range(3)]
    steps, decays = [torch.ones(()) for _ in params], [0.1] * len(params)
    return lambda: ops.adamw(params, [], *lists, steps, decays, torch.tensor(0.5)), params


def test_an_op_over_many_tensors_is_raced_on_some_of_them(monkeypatch):
    """At ViT-g a copy of the optimiser's tensors would take 18 GB. A second a race of the sample, which
    is a part of the bytes, is more of a step."""
    limit = 40_000
    monkeypatch.setattr("eva_fast.ops.settle.SAMPLE_BYTES", limit)
    step, params = adamw_step([1000, 10] * 20)
    step()
    before = [p.clone() for p in params]
    raced = []

    def clock(name, run, device):
        lists = [a for a in run.args if isinstance(a, list) and a]
        assert len({len(values) for values in lists}) == 1  # the same places of all
        (tensors,) = {sum(t.nbytes for v in lists for t in v if torch.is_tensor(t))}
        raced.append(tensors)
        assert {t.numel() for t in lists[0]} == {1000, 10}  # every kind is there
        run()
        return 1.0

    with timed_by(clock):
        found = settle(lambda: None if raced else step(), CPU, {})
    assert raced and max(raced) <= limit
    whole = 20 * (4 * 4 * 1010 + 2 * 4)
    milliseconds = next(iter(found["adamw"].milliseconds.values()))
    assert milliseconds == pytest.approx(1e3 * whole / raced[0])
    assert all(
        (p != b).any() for p, b in zip(params, before)
    )  # by the step itself, not by the race


def test_where_every_candidate_runs_out_of_memory_the_preferred_one_stays():
    def clock(name, run, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with timed_by(clock):
        found = settle(step, CPU, {})
    assert found["bias_gelu"] == kept.Choice("native")


def test_no_random_number_is_drawn():
    before = torch.get_rng_state()
    settle(lambda: ops.bias_gelu(torch.randn(4, 6), None), CPU, {})
    assert torch.equal(torch.get_rng_state(), before)


def test_a_part_that_replaces_others_is_raced_whole():
    ran = []
    parts = {"masked_cosine_head": {n: lambda n=n: ran.append(n) for n in ("torch", "triton")}}
    with timed_by(Clock("triton")):
        found = settle(step, CPU, {}, parts)
    assert found["masked_cosine_head"].implementation == "triton" and set(ran) == {
        "torch",
        "triton",
    }


def test_a_resumed_run_takes_over_what_this_machine_has_and_says_what_not(caplog):
    take_over(
        {"bias_gelu": "torch", "packed_attention": "torch", "adamw": "triton", "gone": "x"}, "cpu"
    )
    assert choose.demanded("bias_gelu_backward") == "torch"
    assert choose.implementation("packed_attention", "cpu") == "cpu_flash"
    assert choose.demanded("adamw") is None and choose.implementation("adamw", "cpu") == "native"
    (warning,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    assert "{'adamw': 'triton', 'gone': 'x'}" in warning


def test_the_record_says_what_runs_and_why():
    ops.force("bias_gelu", "torch")
    with timed_by(Clock("native")):
        settle(step, CPU, {"record": 1})
    assert record()["bias_gelu"] == {
        "implementation": "torch", "why": "forced", "milliseconds": {"torch": 4e3},
    }  # fmt: skip
    ops.force("bias_gelu")
    with timed_by(Clock("native")):
        settle(step, CPU, {"record": 2})
    assert record()["bias_gelu"]["why"] == "measured"
    assert record()["bias_gelu"]["milliseconds"] == {"native": 2e3, "torch": 4e3}
    take_over({"bias_gelu": "torch"}, "cpu")
    assert record()["bias_gelu"]["why"] == "resumed"
