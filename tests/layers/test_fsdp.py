"""FSDP2 over two gloo processes: one process's loss and gradients, through the fused path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.layers.fsdp_worker import PROCESSES, own_share, student

pytestmark = pytest.mark.dist
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """What the processes found: {case: {"loss": ..., parameter: gradient}}."""
    folder = tmp_path_factory.mktemp("fsdp")
    command = [sys.executable, "-m", "tests.layers.fsdp_worker"]
    files = [str(folder / "store"), str(folder / "found.pt")]
    processes = [
        subprocess.Popen(
            [*command, str(rank), *files], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(PROCESSES)
    ]  # fmt: skip
    try:
        for process in processes:
            said = process.communicate(timeout=120)[0]
            assert process.returncode == 0 and "UserWarning" not in said, said
    finally:
        for process in processes:
            process.kill()
    return torch.load(files[1])


def one_process(drop_path: float, dtype: torch.dtype):
    """Mean loss of both shares and float32 mean of their gradients, in one process."""
    losses, gradients = [], {}
    for rank in range(PROCESSES):
        model = student(drop_path=drop_path).to(dtype)
        torch.manual_seed(7 + rank)
        loss = model.loss(*own_share(rank))
        loss.backward()
        losses.append(loss.detach().float())
        for name, p in model.named_parameters():
            gradients[name] = gradients.get(name, 0) + p.grad.float() / PROCESSES
    return {"loss": sum(losses) / PROCESSES, **gradients}


@pytest.mark.parametrize("reshard", [True, False], ids=["resharded", "kept"])
@pytest.mark.parametrize("case", ["fp32 0.0", "fp32 0.3", "bf16 0.3"])
def test_gradients_of_one_process(sharded, case, reshard):
    kind, drop_path = case.split()
    found = sharded[f"{kind} {reshard} {drop_path}"]
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    expected = one_process(float(drop_path), dtype)
    assert found.keys() == expected.keys() and len(found) > 40
    for name, wanted in expected.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - wanted).norm() <= 1e-6 * wanted.norm() + 1e-9, name
