"""The host's side of a step on a CUDA device that does nothing; no time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.stub import build

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    build.obstacle() is not None, reason=f"the stub of CUDA cannot run here: {build.obstacle()}"
)


def test_both_steps_run_and_their_launches_are_counted():
    words = ["--depth", "2", "--rounds", "1", "--steps", "1", "--json"]
    command = [sys.executable, "-m", "bench.host", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["2"]
    captured = rows.pop("eva_fast captured")
    assert set(rows) == {"tuned", "tuned half", "eva_fast"}
    for row in rows.values():
        assert row["launches"] > 50 and row["graph_launches"] == 0 and row["waits"] == 0
        assert row["cpu_ms"] > 0 and row["wall_ms"] > 0
    assert rows["eva_fast"]["host_copies"] == 0  # AdamW finds its gradients where they were
    assert captured["graph_launches"] == 1 and captured["launches"] < 10
    assert captured["waits"] == captured["host_copies"] == 0
