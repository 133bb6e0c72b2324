"""Memory that shows what a kernel forgets to write, and a seed. The `kernels` fixture and the child
process that interprets Triton are in tests/conftest.py."""

import contextlib

import pytest
import torch

from eva_fast.ops import choose
from eva_fast.ops.native import calls


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh memory is full of NaN, so an output that a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Choices are kept in a folder of this test's own, and nothing is chosen yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    choose.set_kernels("auto")
    choose.forget_measured()
    yield tmp_path
    choose.set_kernels("auto")
    choose.forget_measured()


@pytest.fixture
def gpu_to_race_on(monkeypatch, own_cache):
    """As on an H100, as far as choosing goes: nothing runs there. Time with `race.timed_by`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "H100")
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices=(): contextlib.nullcontext())


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(params=calls.ISA_NAMES)
def isa(request):
    """Forces the C++ kernels for one instruction set."""
    if calls.set_isa(request.param) != request.param:
        calls.set_isa(None)
        pytest.skip(f"this CPU does not run {request.param}")
    choose.set_kernels("native")
    yield request.param
    choose.set_kernels("auto")
    calls.set_isa(None)
