"""Shared fixtures: outputs of the official EVA-01 code, and the implementations of the ops.

The tests run in two processes, because Triton decides at import whether to interpret. Here, under
plain `pytest`: PyTorch and the C++ library, and everything that compiles for GPUs. In a child
process with TRITON_INTERPRET=1, started by tests/ops/test_interpreter.py: the Triton kernels, on
the CPU. A test that takes the `kernels` fixture runs in both, once for each implementation; to run
the Triton half of one file alone:

    TRITON_INTERPRET=1 pytest -m interpreted tests/ops/test_bias_gelu.py

With `-m gpu` the same tests run on an NVIDIA GPU: Triton's kernels compiled, every tensor made there.
"""

import contextlib
import json
import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # each has a core, and so have the processes that it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from safetensors import safe_open

from eva_fast import native
from eva_fast.ops import choose, registry

on_gpu = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
)
"""Marks of a parameter that stands for a GPU."""
DEVICES = [
    pytest.param("cpu", id="CPU"),
    pytest.param("cuda", id="GPU", marks=on_gpu),
]

if registry.interpreted():
    from tests.ops import interpreter_bf16

    interpreter_bf16.patch()
    KINDS = [pytest.param(("triton", "cpu"), id="triton", marks=pytest.mark.interpreted)]
else:
    KINDS = [
        *(
            pytest.param((kind, "cpu"), id=kind)
            for kind in ("torch", "native")
            if kind == "torch" or native.available()
        ),
        *(
            pytest.param((kind, "cuda"), id=f"{kind} on a GPU", marks=on_gpu)
            for kind in ("torch", "triton")
        ),
    ]

GOLDEN = Path(__file__).parent / "golden"


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "interpreted: Triton kernels under TRITON_INTERPRET=1 (see tests/conftest.py)"
    )


@contextlib.contextmanager
def on_device(device):
    """Tensors are made there meanwhile."""
    if device != "cpu":
        torch.set_default_device(device)
    try:
        yield
    finally:
        if device != "cpu":
            torch.set_default_device(None)


@pytest.fixture(params=KINDS)
def kernels(request):
    """Forces one implementation for the test, "torch", "native" or "triton", on the device where
    tensors are made meanwhile."""
    kind, device = request.param
    choose.set_kernels(kind)
    with on_device(device):
        yield kind
    choose.set_kernels("auto")


@pytest.fixture(params=[] if registry.interpreted() else DEVICES)
def device(request):
    """The CPU, and a GPU under `-m gpu`: for tests that name the device themselves."""
    return request.param


@pytest.fixture
def little_memory():
    """The test may take 256 MB at most, beside what the process has (of Linux, which can tell)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    except OSError:
        yield
        return
    before = _resident("VmRSS")
    yield
    assert _resident("VmHWM") - before < 256 << 20


def _resident(name):
    """Bytes that the process holds, or held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def _read(name):
    with safe_open(GOLDEN / name, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.fixture(scope="session")
def _eva_micro():
    return _read("eva_micro.safetensors")


@pytest.fixture
def eva_micro(request, _eva_micro):
    """(tensors, sizes) of the micro student, computed by the official code in float32; on the
    device of the test's `kernels`."""
    if "kernels" in request.fixturenames:
        request.getfixturevalue("kernels")
    tensors, meta = _eva_micro
    here = torch.empty(0).device
    return {name: tensor.to(here) for name, tensor in tensors.items()}, meta


@pytest.fixture(scope="session")
def eva_micro_groups():
    return json.loads((GOLDEN / "eva_micro.param_groups.json").read_text())


@pytest.fixture(scope="session")
def clip_micro():
    """(tensors, sizes) of a micro CLIP image tower in OpenAI's naming."""
    return _read("clip_micro.safetensors")
