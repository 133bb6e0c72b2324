"""The comparison with LightlyTrain: what is asked of both, turns, ratios. Without the library itself."""

import json
import os
import runpy
import sys
import types

import pytest
import torch
from torch import nn

from bench.lightly import __main__ as comparison
from bench.lightly import setting
from bench.lightly.cases import CASES
from bench.lightly.counting import Counting
from bench.lightly.race import Side, Turn, rounds, ticks
from bench.lightly.turns import InMemory
from eva_fast.config import Config

WORKER = """
import sys, time
from bench.lightly.turns import Turns
turns = Turns(int(sys.argv[1]))
time.sleep(0.01)
while turns.after_step():
    sum(range(100_000))
"""


@pytest.mark.parametrize("name", CASES)
def test_our_options_are_ones_of_a_run_and_both_ask_for_the_same(name, tmp_path):
    case = CASES[name]
    asked = (tmp_path, "fp32", 1, 100)
    ours, theirs = case.ours(*asked), case.theirs(*asked)
    json.dumps([ours, theirs])
    config = Config.from_options({**ours, "out": str(tmp_path / "run")})
    assert config.optim.steps == theirs["trainer_args"]["max_steps"]
    for own, other in (
        ("data", "data"), ("model", "model"), ("batch_size", "batch_size"), ("workers", "num_workers"),
    ):  # fmt: skip
        assert ours[own] == theirs[other]
    assert theirs["precision"] == "32-true"
    for option, value in theirs.get("model_args", {}).items():
        assert ours[option] == value


@pytest.mark.parametrize("name, module", [("ours", "eva_fast"), ("theirs", "lightly_train")])
def test_the_scripts_ask_for_the_case_of_defaults(name, module, monkeypatch):
    called = {}
    stub = types.ModuleType(module)
    stub.pretrain = lambda **options: called.update(options)
    monkeypatch.setitem(sys.modules, module, stub)
    runpy.run_path(str(setting.SCRIPTS / f"{name}.py"))
    case = CASES["defaults"]
    assert called["model"] == case.student
    if name == "ours":
        assert called["objective"] == "fd" and called["teacher"] == case.teacher_file
    else:
        assert called["method"] == case.method
        assert f"{called['method_args']['teacher']}-notpretrained" == case.teacher
    assert setting.script_lines(name) == 8


def test_a_side_makes_the_steps_it_is_told_and_stops_between(tmp_path):
    words = [sys.executable, "-c", WORKER, "{answers}"]
    sides = [Side(name, words, {}, tmp_path / f"{name}.log") for name in ("theirs", "ours")]
    try:
        assert sides[0].first_step.seconds >= 0.01
        found = rounds(sides, count=3, steps=2, warm=1)
        state = [_state(side) for side in sides]
    finally:
        for side in sides:
            side.end()
    assert [len(turns) for turns in found] == [2, 2, 2]
    assert all(turn.seconds > 0 for turns in found for turn in turns)
    assert state == ["T", "T"]


def _state(side):
    with open(f"/proc/{side._process.pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]


def test_a_side_that_dies_says_its_last_words(tmp_path):
    with pytest.raises(RuntimeError, match=r"theirs ended early: .*no such photographs"):
        words = [sys.executable, "-c", "raise SystemExit('no such photographs')"]
        Side("theirs", words, {}, tmp_path / "log")


def test_processor_time_is_of_the_group_alone():
    line = "12 (a (b) c) S 1 77 77 0 -1 4194304 10 0 0 0 30 12 5 5 20 0 1 0 100 1000 10"
    assert ticks(line, 77) == 42 and ticks(line, 78) == 0


def test_batches_in_memory_are_the_first_ones_again():
    class Loader:
        epoch = 3

        def __iter__(self):
            block = torch.zeros(2)  # a loader may write its batches into the same memory
            for number in range(9):
                yield block.fill_(number)

    kept = InMemory(Loader())
    assert [float(batch[0]) for _, batch in zip(range(5), kept)] == [0, 1, 0, 1, 0]
    assert kept.epoch == 3


def test_counted_are_products_convolutions_and_attention():
    torch.manual_seed(0)
    linear, conv = nn.Linear(8, 4), nn.Conv2d(3, 5, 2)
    heads = torch.randn(1, 2, 6, 4)
    with torch.no_grad(), Counting() as counting:
        linear(torch.randn(3, 8))
        conv(torch.randn(1, 3, 4, 4))
        nn.functional.scaled_dot_product_attention(heads, heads, heads)
    products, attention = 2 * 3 * 8 * 4, 2 * 2 * 2 * 6 * 6 * 4
    assert sum(counting.flops.values()) == products + 2 * 5 * 9 * 3 * 4 + attention


def test_ratios_are_taken_within_rounds():
    theirs, ours = ((2.0, 3.0), (9.0, 6.0), (8.0, 8.0)), ((1.0, 1.0), (3.0, 3.0), (8.0, 1.0))
    found = [[Turn(*a), Turn(*b)] for a, b in zip(theirs, ours)]
    assert comparison.ratios(found, "seconds") == (1.5, 2.0, 2.5)
    assert comparison.ratios(found, "cpu_seconds") == (2.5, 3.0, 5.5)


def test_results_of_a_machine_are_kept_beside_each_other(tmp_path):
    first = comparison.keep("vit", {"times": 1.0}, tmp_path)
    assert comparison.keep("resnet", {"times": 2.0}, tmp_path) == first
    comparison.keep("vit", {"times": 3.0}, tmp_path)
    entries = json.loads(first.read_text())["entries"]
    assert {name: entry["times"] for name, entry in entries.items()} == {"resnet": 2.0, "vit": 3.0}
    assert "avx" in first.name or "default" in first.name


def test_telemetry_is_off(tmp_path):
    assert setting.their_environment(tmp_path)["LIGHTLY_TRAIN_EVENTS_DISABLED"] == "1"


def test_photographs_are_jpeg_files_of_one_size(tmp_path):
    pytest.importorskip("skimage")
    from PIL import Image

    setting.write_photographs(tmp_path / "photographs", 3)
    sizes = {Image.open(path).size for path in os.scandir(tmp_path / "photographs")}
    assert sizes == {setting.SIZE}
