"""What a plan launches, of kernels that note it instead of running."""

from types import SimpleNamespace

import pytest
import torch

from eva_fast.ops.registry import interpreted

launch = pytest.importorskip("eva_fast.kernels.launch", exc_type=ImportError)
pytestmark = pytest.mark.skipif(interpreted(), reason="the interpreter has no launches to plan")


class Function:
    """Stands for a Triton function of three tensors, a number and a constant."""

    arg_names = ("p_x", "p_bias", "p_out", "rows", "BLOCK")

    def __init__(self):
        self.compiled = []

    def __getitem__(self, grid):
        def compile_and_launch(*args, **options):
            self.compiled.append((grid, args, options))
            return SimpleNamespace(number=len(self.compiled))

        return compile_and_launch


@pytest.fixture
def direct(monkeypatch):
    """What was launched without Triton: (which compilation, grid, stream, arguments)."""
    found = []

    def runner(compiled):
        return lambda *args: found.append((compiled.number, *args))

    monkeypatch.setattr(launch, "_runner", runner)
    monkeypatch.setattr(launch, "_current_device", lambda: 0)
    monkeypatch.setattr(launch, "_current_stream", lambda device: 7)
    return found


def test_a_plan_compiles_once_for_dtypes_and_then_launches_addresses(direct):
    kernel = launch.Kernel(function := Function())
    run = launch.plan(kernel, (3, 2), 5, BLOCK=16, num_warps=4)
    x, out, other = torch.zeros(8), torch.zeros(8), torch.zeros(8)
    run(x, None, out)
    assert function.compiled == [((3, 2), (x, None, out, 5), {"BLOCK": 16, "num_warps": 4})]
    run(other, None, out)
    arguments = (other.data_ptr(), 0, out.data_ptr(), 5, 16)
    assert direct == [(1, 3, 2, 1, 7, arguments)] and len(function.compiled) == 1
    run(x.half(), None, out)
    run(x, x, out)  # a tensor where there was none
    assert len(function.compiled) == 3 and len(direct) == 1
    run(x, x, out)
    assert direct[-1][0] == 3


def test_what_is_not_aligned_goes_through_the_kernel(direct):
    kernel = launch.Kernel(function := Function())
    run = launch.plan(kernel, (1,), 5, BLOCK=16)
    x, out = torch.zeros(9), torch.zeros(8)
    run(x[:8], None, out)
    run(x[1:], None, out)
    assert len(function.compiled) == 2
    run(x[1:], None, out)
    assert direct == [(2, 1, 1, 1, 7, ((x[1:].data_ptr(), None, out.data_ptr(), 5, 16)))]


def test_watched_launches_are_tritons_own(direct, monkeypatch):
    monkeypatch.setattr(launch, "_watched", lambda: True)
    run = launch.plan(launch.Kernel(function := Function()), (1,), 5, BLOCK=16)
    x = torch.zeros(8)
    for _ in range(3):
        run(x, x, x)
    assert len(function.compiled) == 3 and not direct
