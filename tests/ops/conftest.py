"""Memory that shows what a kernel forgets to write, and a seed. The `kernels` fixture and the child
process that interprets Triton are in tests/conftest.py."""

import pytest
import torch


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
