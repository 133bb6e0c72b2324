"""What ops declare: an op from outside the package, files of one name, implementations that speak up."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eva_fast import ops
from eva_fast.inspect.doctor import diagnose
from eva_fast.ops import Case, registry
from eva_fast.ops.race import timed_by
from eva_fast.ops.settle import settle
from eva_fast.planning.counter import Recorder
from eva_fast.planning.formulas import PARTS
from tests.pages.blocks import python_of

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
PUBLIC = [op for op in registry.ops() if op.backward_of is None]


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def example():
    """The op that docs/extend/op.md adds from outside: all of it, through the public seam."""
    code = python_of("extend/op.md")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 60
    assert all("eva_fast import ops" in line for line in re.findall(".*eva_fast.*", code))
    found = {}
    exec(code, found)
    yield found
    registry.forget(found["BACKWARD"])
    registry.forget(found["OP"])


def test_an_op_from_outside_computes(example):
    x = torch.randn(5, 7, requires_grad=True)
    soft_cap = example["soft_cap"]
    torch.library.opcheck(torch.ops.example.soft_cap.default, (x, 3.0))
    out, want = soft_cap(x, 3.0), example["reference"](x, 3.0)
    torch.testing.assert_close(out, want)
    dout = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, x, dout), torch.autograd.grad(want, x, dout)
    )


def test_an_op_from_outside_is_chosen_and_forced(example):
    assert ops.implementation("soft_cap", "cpu") == "in_place"
    assert ops.implementation("soft_cap", "cpu", torch.bfloat16) == "torch"
    assert ops.implementation("soft_cap_backward", "cpu") == "torch"
    ops.force("soft_cap", "torch")
    assert ops.implementation("soft_cap", "cpu") == "torch"
    ops.force("soft_cap", "auto")
    ops.set_kernels("auto", {"soft_cap": "in_place"})
    assert ops.implementation("soft_cap", "cpu") == "in_place"
    with pytest.raises(ValueError, match="'quick' for soft_cap: choose from .*'in_place'"):
        ops.force("soft_cap", "quick")


@pytest.mark.parametrize("faster", ["torch", "in_place"])
def test_an_op_from_outside_is_raced_in_a_step(example, faster):
    def step():
        example["soft_cap"](torch.ones(3, 4, requires_grad=True), 2.0).sum().backward()

    def clock(name, run, device):
        run()
        return 1.0 if name == faster else 2.0

    with timed_by(clock):
        found = settle(step, CPU, {"test": faster})
    assert found["soft_cap"].milliseconds.keys() == {"torch", "in_place"}
    assert found["soft_cap_backward"].implementation == "torch"
    assert ops.implementation("soft_cap", "cpu") == faster


def test_an_op_from_outside_is_listed_and_counted(example):
    report = diagnose()
    assert report["ops"]["soft_cap"] == "in_place"
    assert report["obstacles"]["soft_cap"] == {"in_place": None, "torch": None}
    x = torch.empty(5, 7, device="meta", requires_grad=True)
    with Recorder() as recorder, FlopCounterMode(display=False) as counter:
        example["soft_cap"](x, 2.0).sum().backward()
    named = {o.name: o for o in recorder.operators}
    forward = named["example::soft_cap"]
    assert (forward.part, forward.flops, forward.kernels) == ("head", 3 * 35, 1)
    assert named["example::soft_cap_backward"].part == "head"
    assert counter.get_total_flops() == 3 * 35


def test_a_name_is_given_once(example):
    with pytest.raises(ValueError, match="there is an op 'soft_cap' already"):
        ops.define("soft_cap", part="head")
    with pytest.raises(ValueError, match="no op 'soft_hat': choose from .*soft_cap"):
        ops.implementation("soft_hat", "cpu")


@pytest.mark.parametrize("op", PUBLIC, ids=lambda op: op.name)
def test_files_of_one_name(op):
    assert callable(getattr(ops, op.name)) and callable(getattr(ops, op.name).reference)
    assert op.reference is getattr(ops, op.name).reference
    assert (ROOT / "tests" / "ops" / f"test_{op.name}.py").exists()
    with_optimizer = ("adamw", "guard_step")  # bench/optimizer.py runs them
    assert (ROOT / "bench" / "ops" / f"{op.name}.py").exists() or op.name in with_optimizer
    for family, folder, end in (("triton", "kernels", ".py"), ("native", "csrc/ops", ".h")):
        has = any(i.family == family for i in op.implementations.values())
        assert (ROOT / folder / f"{op.name}{end}").exists() == has
    module = importlib.util.find_spec(f"eva_fast.ops.{op.name}")
    assert Path(module.origin).name == f"{op.name}.py"


def test_every_op_is_complete():
    for op in registry.ops():
        assert op.part in PARTS and op.kernels >= 1, op.name
        torn = Case(CPU, torch.float64)
        assert op.candidates(torn), f"{op.name}: nothing runs in float64"
        for name, obstacle in op.obstacles(Case(torch.device("xpu"), torch.float32)).items():
            assert obstacle is None or obstacle.split()[0] in ("runs", "needs", "takes"), name


def test_an_implementation_that_is_asked_for_says_why_not():
    op = registry.find("bias_gelu")
    with pytest.raises(ValueError, match="'native' cannot run torch.float64 on cpu: it"):
        op.named("native", Case(CPU, torch.float64))
    with pytest.raises(ValueError, match="bias_gelu: unknown implementation 'quick': choose from"):
        op.named("quick", Case(CPU, torch.float32))
