"""Checkpoints on a disk that is full: the old ones stay, the run goes on, and is told."""

import subprocess

import pytest
import torch

from eva_fast.train import checkpoint
from eva_fast.train.checkpoint_writer import Writer


@pytest.fixture
def small_disk(tmp_path):
    """Three megabytes, for real."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_costs_the_new_checkpoint_alone(small_disk):
    writer = Writer(small_disk, keep=2)
    for step in (1, 2):  # of one megabyte each
        writer.start(step, {"w": torch.full((2**18,), float(step))}, {})
    writer.wait()
    writer.start(3, {"w": torch.full((2**18,), 3.0)}, {})
    with pytest.raises(RuntimeError, match="step_000000003 cannot be written: .*No space left"):
        writer.wait()
    assert [p.name[-1] for p in checkpoint.steps_in(small_disk)] == ["1", "2"]
    (small_disk / "step_000000001" / "state.json").unlink()  # damaged: never taken
    newest = checkpoint.newest(small_disk)
    found = {"w": torch.zeros(2**18)}
    checkpoint.load(newest, found)
    assert newest.name == "step_000000002" and found["w"].eq(2).all()
    for path in (small_disk / "step_000000001").iterdir():
        path.unlink()
    writer.start(3, {"w": torch.full((2**18,), 3.0)}, {})  # there is room again
    writer.close()
    assert checkpoint.newest(small_disk).name == "step_000000003"
