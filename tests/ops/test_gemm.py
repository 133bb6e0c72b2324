"""The matrix product: which implementation a CPU runs. Numbers of the C++ one are in test_native."""

import pytest
import torch

from eva_fast import native
from eva_fast.ops import choose
from eva_fast.ops.gemm import OP, gemm
from eva_fast.ops.race import timed_by

pytestmark = [
    pytest.mark.skipif(not native.available(), reason="the native library is not built"),
    pytest.mark.usefixtures("own_cache"),
]


@pytest.mark.parametrize("faster", ["torch", "native"])
def test_the_faster_one_runs_and_is_remembered(faster):
    timed = []

    def clock(name, run, device):
        timed.append(name)
        return 1.0 if name == faster else 2.0

    with timed_by(clock):
        assert choose.implementation("gemm", "cpu") == faster and set(timed) == {"torch", "native"}
        timed.clear()
        choose.forget_measured()  # as another process would start
        assert choose.implementation("gemm", "cpu") == faster
        for other in ("torch", "native"):
            choose.set_kernels("auto", {"gemm": other})
            assert choose.implementation("gemm", "cpu") == other
            choose.set_kernels(other)
            assert choose.implementation("gemm", "cpu") == other
    assert not timed


def test_the_race_is_run_and_draws_no_random_numbers():
    before = torch.get_rng_state()
    assert choose.implementation("gemm", "cpu") in ("torch", "native")
    assert torch.equal(torch.get_rng_state(), before)
    ((_, choices),) = choose.kept.everything()
    (choice,) = choices.values()
    assert set(choice.milliseconds) == {"torch", "native"}
    assert min(choice.milliseconds.values()) > 0


def test_other_ops_need_no_race():
    with timed_by(lambda *_: pytest.fail("raced")):
        assert choose.implementation("bias_gelu", "cpu") == "native"
        assert choose.implementation("gemm", "cuda") == "torch"


def test_16_bit_products_are_the_librarys():
    assert choose.implementation("gemm", "cpu", torch.bfloat16) == "torch"
    case = choose.Case(torch.device("cpu"), torch.bfloat16)
    assert OP.obstacles(case)["native"] == "takes float32"
    a, b = torch.randn(5, 7).bfloat16(), torch.randn(7, 3).bfloat16()
    assert torch.equal(gemm(a, b, None), a @ b)
