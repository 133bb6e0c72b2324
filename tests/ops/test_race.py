"""The race: who takes part, how often, who is left out; and what is kept of it."""

import logging

import pytest
import torch

from eva_fast.ops import choose, kept
from eva_fast.ops.race import FEWEST, ROUNDS, race, timed_by

CPU = torch.device("cpu")


def once(run):
    return lambda: [(1, run)]


def raced(times, monkeypatch, long=2.0):
    """(medians, who ran in turn) of candidates whose turns after the first take `times` seconds."""
    order = []

    def clock(name, run, device):
        run()
        return 100.0 if order.count(name) == 1 else times[name]

    monkeypatch.setattr("eva_fast.ops.race.LONG", long)
    runs = {name: once(lambda name=name: order.append(name)) for name in times}
    with timed_by(clock):
        return race("test", runs, CPU), "".join(order)


def test_candidates_take_turns_and_the_first_turn_does_not_count(monkeypatch):
    found, order = raced({"a": 1.0, "b": 1.1}, monkeypatch)
    assert found == {"a": 1.0, "b": 1.1} and order == "ab" * (ROUNDS + 1)


def test_who_is_clearly_behind_stops_and_the_others_go_on(monkeypatch):
    found, order = raced({"a": 1.0, "b": 1.5, "c": 1.1}, monkeypatch)
    assert found == {"a": 1.0, "b": 1.5, "c": 1.1}
    assert order == "abc" * (FEWEST + 1) + "ac" * (ROUNDS - FEWEST)
    assert raced({"a": 1.0, "b": 1.5}, monkeypatch)[1] == "ab" * (FEWEST + 1)


def test_a_long_race_is_decided_earlier(monkeypatch):
    assert raced({"a": 1.0, "b": 1.1}, monkeypatch, long=0.0)[1] == "ab" * (FEWEST + 2)


def test_calls_of_a_turn_are_weighed_by_their_number():
    def turn():
        yield 3, lambda: 1.0
        yield 2, lambda: 10.0

    with timed_by(lambda name, run, device: run()):
        assert race("test", {"only": turn}, CPU) == {"only": 23.0}


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "big runs out of memory and is left out"),
        (MemoryError(), "big runs out of memory and is left out"),
        (RuntimeError("no such shape"), "big fails (RuntimeError: no such shape) and is left out"),
    ],
    ids=["device memory", "host memory", "other"],
)
def test_a_candidate_that_fails_is_left_out_with_the_reason(error, says, caplog):
    tried = []

    def big():
        tried.append(1)
        if len(tried) == 2:  # in the second turn: what it did before does not count
            raise error

    with caplog.at_level(logging.WARNING, "eva_fast"):
        found = race("test", {"big": once(big), "small": once(lambda: None)}, CPU)
    assert found.keys() == {"small"} and len(tried) == 2
    assert f"test: {says}" in caplog.text


def test_nobody_is_left():
    def fail():
        raise ValueError("never")

    assert race("test", {"a": once(fail)}, CPU) == {}


def test_wall_time_of_a_cpu():
    x = torch.randn(200, 200)
    found = race("test", {"product": once(lambda: x @ x), "nothing": once(lambda: None)}, CPU)
    assert 0 <= found["nothing"] < found["product"] < 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_device_time_leaves_out_the_hosts():
    """A kernel of 2 ms whose launch takes the host 20 ms."""
    import time

    device = torch.device("cuda")
    cycles = 3_000_000  # at 1.5 GHz; no GPU's clock is far from it

    def slow_launch():
        time.sleep(0.02)
        torch.cuda._sleep(cycles)

    found = race("test", {"slow launch": once(slow_launch)}, device)
    assert 5e-4 < found["slow launch"] < 1e-2


def test_choices_are_kept_for_each_subject(own_cache):
    first, second = (kept.file(CPU, {"shape": shape}) for shape in (1, 2))
    assert first != second and first.is_relative_to(own_cache) and kept.read(first) is None
    choices = {"gemm": kept.Choice.fastest({"torch": 2e-3, "native": 1e-3})}
    assert choices["gemm"] == kept.Choice("native", {"torch": 2.0, "native": 1.0})
    kept.write(first, choices)
    assert kept.read(first) == choices and kept.everything() == [(first, choices)]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"gemm": 1}', '{"gemm": {"kind": "torch", "milliseconds": {}}}']
)
def test_a_damaged_file_is_as_none(own_cache, text):
    path = kept.file(CPU, {})
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert kept.read(path) is None and kept.everything() == []


def test_a_disk_that_refuses_costs_a_warning(own_cache, caplog):
    path = kept.file(CPU, {})
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    path.parent.write_text("a file where the folder should be")
    kept.write(path, {"gemm": kept.Choice("torch")})
    assert "cannot be kept" in caplog.text and kept.everything() == []


def test_a_choice_depends_on_the_build(own_cache, monkeypatch):
    before = kept.file(CPU, {})
    monkeypatch.setattr(choose.registry.native, "build", lambda: "another")
    assert kept.file(CPU, {}) != before


def test_a_choice_depends_on_whether_the_build_is_used(own_cache, monkeypatch):
    """A stale library is there, but its kernels may not run."""
    monkeypatch.setattr(choose.registry.native, "build", lambda: "some")
    files = []
    for usable in (True, False):
        monkeypatch.setattr(choose.registry.native, "available", lambda usable=usable: usable)
        files.append(kept.file(CPU, {}))
    assert files[0] != files[1]
