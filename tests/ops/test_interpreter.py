"""Runs the Triton half of the op tests, and the golden files through them: see tests/conftest.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eva_fast.ops import registry

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(registry.interpreted(), reason="this process interprets Triton already")
def test_kernels_through_the_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "interpreted",
        "-x",
        "--durations=5",
        str(HERE),
        str(HERE.parent / "model" / "test_fused.py"),
        str(HERE.parent / "model" / "test_vqkd.py"),
        str(HERE.parent / "model" / "test_mae.py"),
        str(HERE.parent / "model" / "test_distilled.py"),
    ]
    child = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stdout[-8000:] + child.stderr[-2000:]
    assert " passed" in child.stdout
