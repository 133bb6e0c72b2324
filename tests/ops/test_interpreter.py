"""Runs the Triton half of the op tests, and the golden files through them: see tests/conftest.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eva_fast.ops import registry

HERE = Path(__file__).parent
MODEL = HERE.parent / "model"
PARTS = {
    "ops and students": [HERE, MODEL / "test_fused.py", MODEL / "test_distilled.py"],
    "decoders": [MODEL / "test_mae.py"],
    "codes": [MODEL / "test_vqkd.py"],
}
"""What one process interprets, in about equal time."""


@pytest.mark.slow
@pytest.mark.skipif(registry.interpreted(), reason="this process interprets Triton already")
@pytest.mark.parametrize("part", PARTS)
def test_kernels_through_the_interpreter(part):
    pytest.importorskip("triton", reason="Triton is not installed")
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "interpreted", "-x", *map(str, PARTS[part])],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stdout[-8000:] + child.stderr[-2000:]
    assert " passed" in child.stdout
