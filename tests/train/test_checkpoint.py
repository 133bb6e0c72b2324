"""Checkpoints are whole or not there."""

import json
from traceback import StackSummary

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from eva_fast.train import checkpoint
from eva_fast.train.checkpoint_writer import save


def tensors(value):
    return {"model": {"w": torch.full((5, 3), value), "b": torch.arange(4)}}


def write(root, step, value, keep=2):
    return save(root, step, tensors(value), {"step": step}, keep)


def test_round_trip_and_retention(tmp_path):
    for step in (5, 10, 15):
        write(tmp_path, step, float(step))
    assert [p.name for p in checkpoint.steps_in(tmp_path)] == ["step_000000010", "step_000000015"]
    folder = checkpoint.newest(tmp_path)
    target = tensors(0.0)
    checkpoint.load(folder, target)
    assert torch.equal(target["model"]["w"], torch.full((5, 3), 15.0))
    assert checkpoint.read_state(folder) == {"step": 15}


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "draft"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage, caplog):
    good, bad = write(tmp_path, 1, 1.0), write(tmp_path, 2, 2.0)
    victim = next(bad.glob("*.distcp"))
    data = bytearray(victim.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    elif damage == "truncate":
        victim.write_bytes(data[: len(data) // 2])
    elif damage == "remove":
        victim.unlink()
    elif damage == "manifest":
        (bad / "manifest.json").write_text('{"step": 2, "fil')
    else:
        bad.rename(bad.with_suffix(".tmp"))  # killed before the rename
    assert checkpoint.newest(tmp_path) == good
    assert ("passed over" in caplog.text) == (damage != "draft")


def test_a_left_over_draft_does_not_disturb_saving(tmp_path):
    draft = tmp_path / "step_000000003.tmp"
    draft.mkdir()
    (draft / "__0_0.distcp").write_bytes(b"half")
    folder = write(tmp_path, 3, 3.0)
    assert checkpoint.fault_of(folder) is None
    assert not draft.exists()


def test_saving_a_step_twice_keeps_the_first_and_mends_a_damaged_one(tmp_path):
    folder = write(tmp_path, 4, 4.0)
    before = (folder / "manifest.json").stat().st_mtime_ns
    write(tmp_path, 4, 4.0)
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    (folder / "state.json").write_text("{}")
    write(tmp_path, 4, 4.0)
    assert checkpoint.fault_of(folder) is None


def test_another_model_is_a_clear_error(tmp_path):
    folder = write(tmp_path, 1, 1.0)
    with pytest.raises(ValueError, match="does not fit this run"):
        checkpoint.load(folder, {"model": {"w": torch.zeros(7, 3)}})
    with pytest.raises(ValueError, match="does not fit this run: .*other"):
        checkpoint.load(folder, {"model": {"other": torch.zeros(5, 3)}})


def failing(*_, **__):
    raise CheckpointException("save", {0: (OSError("no space left"), StackSummary())})


def test_a_checkpoint_that_cannot_be_written_is_a_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match="cannot be written"):
        write(tmp_path / "file", 1, 1.0)
    kept = write(tmp_path, 1, 1.0)
    monkeypatch.setattr("torch.distributed.checkpoint.save", failing)
    with pytest.raises(RuntimeError, match="step_000000002 cannot be written: no space left"):
        write(tmp_path, 2, 2.0)
    assert checkpoint.newest(tmp_path) == kept


def test_nothing_there(tmp_path):
    assert checkpoint.newest(tmp_path / "absent") is None


def test_manifest_lists_every_file(tmp_path):
    folder = write(tmp_path, 1, 1.0)
    listed = set(json.loads((folder / "manifest.json").read_text())["files"])
    assert listed == {p.name for p in folder.iterdir()} - {"manifest.json"}
