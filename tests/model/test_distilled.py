"""Feature Distillation's student and projector by the kernels that are interpreted; by the others it is
tests/golden that checks them."""

import pytest

from eva_fast.ops import registry, set_kernels
from tests.golden import FOLDER, fd_vit, read


@pytest.mark.interpreted
@pytest.mark.skipif(not registry.interpreted(), reason="for the process that interprets Triton")
def test_golden_pass_by_the_interpreted_kernels():
    """Without the file's steps, which take minutes there and run no other kernels."""
    set_kernels("triton")
    try:
        found = list(fd_vit.outputs(*read(FOLDER / "fd_vit_micro.safetensors"), "triton"))
    finally:
        set_kernels("auto")
    assert found and not [row for row in found if not row.ok]
