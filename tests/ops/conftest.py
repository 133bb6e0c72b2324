"""The op tests run in two processes, because Triton decides at import whether to interpret.

Here, under plain `pytest`: PyTorch and the C++ library, and everything that compiles for GPUs.
In a child process with TRITON_INTERPRET=1, started by test_interpreter.py: the Triton kernels, on
the CPU. A test that takes the `kernels` fixture runs in both, once for each implementation; to run
the Triton half of one file alone:

    TRITON_INTERPRET=1 pytest -m interpreted tests/ops/test_bias_gelu.py
"""

import pytest
import torch

from eva_fast import native
from eva_fast.ops import dispatch

if dispatch.interpreted():
    from tests.ops import interpreter_bf16

    interpreter_bf16.patch()
    KINDS = [pytest.param("triton", marks=pytest.mark.interpreted)]
else:
    KINDS = ["torch", *(["native"] if native.available() else [])]


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "interpreted: Triton kernels under TRITON_INTERPRET=1 (see tests/ops/conftest.py)",
    )


@pytest.fixture(params=KINDS)
def kernels(request):
    """Forces one implementation for the test: "torch", "native" or "triton"."""
    dispatch.set_kernels(request.param)
    yield request.param
    dispatch.set_kernels("auto")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh memory is full of NaN, so an output that a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
