"""Checkpoints on a disk that is full: the old ones stay, the run goes on, and is told."""

import contextlib
import errno
import subprocess

import pytest
import torch

from eva_fast.config import Config
from eva_fast.recipes.pretrain import run
from eva_fast.train import checkpoint
from eva_fast.train.checkpoint_writer import Writer
from eva_fast.train.telemetry import Telemetry
from tests.train.several import OPTIONS, furthest, lines, weights


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


def test_a_run_goes_on_through_a_full_disk(tmp_path, small_disk, caplog):
    """Nothing is lost: lines of the log wait, and checkpoints are written when there is room again."""
    filler = small_disk / "filler"

    def fill_and_clear(step):
        if step == 4:
            with filler.open("wb", 0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
        if step == 30:
            filler.unlink()

    options = {**OPTIONS, "steps": 36, "checkpoint_every": 12}
    config = Config.from_options({**options, "out": small_disk / "run"})
    result = run(config, on_step=fill_and_clear)
    assert "cannot be written" in caplog.text and "No space left" in caplog.text
    assert [line["step"] for line in lines(result.out)] == list(range(1, 37))
    assert checkpoint.newest(result.out / "checkpoints").name == "step_000000036"
    run(Config.from_options({**options, "out": tmp_path / "twin"}))
    assert furthest(weights(result.out), weights(tmp_path / "twin")) == 0


def test_lines_that_a_full_disk_refuses_wait(tmp_path, monkeypatch, caplog):
    values = dict(loss=1.0, images_per_second=1.0, data_wait=0.0, seconds_left=0.0)
    with Telemetry(tmp_path, first_step=0, total=3, progress=False) as telemetry:
        sound = telemetry._file
        telemetry.record(step=1, **values)
        telemetry._file = Full()
        telemetry.record(step=2, **values)
        telemetry._file = sound
        telemetry.record(step=3, **values)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert caplog.text.count("its lines wait for room") == 1


class Full:
    """A file that takes nothing, and at the second try says so."""

    taken = False

    def write(self, data):
        if self.taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.taken = True
        return 0


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
