"""Checkpoints are whole or not there."""

import io
import json
import os
import pickle
import shutil
from pathlib import Path
from traceback import StackSummary

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from eva_fast.errors import UsageError
from eva_fast.train import checkpoint
from eva_fast.train.checkpoint_reader import SafeLoads
from eva_fast.train.checkpoint_writer import Writer, save


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


def test_a_flipped_bit_in_any_file_is_seen(tmp_path):
    write(tmp_path, 1, 1.0)
    bad = write(tmp_path, 2, 2.0)
    for victim in sorted(bad.iterdir()):
        whole = victim.read_bytes()
        data = bytearray(whole)
        data[len(data) // 3] ^= 4
        victim.write_bytes(data)
        found = checkpoint.newest(tmp_path)
        assert found is not None and found.name == "step_000000001", victim.name
        victim.write_bytes(whole)
    assert checkpoint.newest(tmp_path) == bad


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return (Path(self.victim).touch, ())


def test_what_runs_code_is_refused_unread(tmp_path):
    folder, victim = write(tmp_path, 1, 1.0), tmp_path / "ran"
    sound = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(pickle.dumps(Bomb(victim)))
    with pytest.raises(ValueError, match="which no checkpoint needs"):
        checkpoint.load(folder, tensors(0.0))
    (folder / ".metadata").write_bytes(sound[: len(sound) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.load(folder, tensors(0.0))
    (folder / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="is a dict"):
        checkpoint.load(folder, tensors(0.0))
    value = io.BytesIO()
    torch.save(Bomb(victim), value)
    value.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="Weights only"):
        SafeLoads().load_bytes(None, value)
    assert not victim.exists()


def test_names_that_are_no_checkpoint_s(tmp_path):
    """A copy, or notes of a person's, are neither taken nor removed."""
    good = write(tmp_path, 1, 1.0)
    shutil.copytree(good, tmp_path / "step_000000001_copy")
    (tmp_path / "step_notes").mkdir()
    assert checkpoint.newest(tmp_path) == good
    write(tmp_path, 2, 2.0, keep=1)
    assert {p.name for p in tmp_path.iterdir()} == {
        "step_000000001_copy", "step_000000002", "step_notes",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "[]", '{"files": 3}', '{"files": {}}', "[" * 100_000, '{"files": {"state.json": [1, 2]}}',
        '{"files": {".metadata": [1, 2], "state.json": 3}}',
        '{"files": {".metadata": [1, 2], "state.json": [true, 1.5]}}',
        '{"files": {".metadata": [0, 0], "state.json": [0, 0], "../x": [0, 0]}}',
        '{"files": {".metadata": [0, 0], "state.json": [0, 0], "/etc/passwd": [0, 0]}}',
        '{"files": {".metadata": [0, 0], "state.json": [0, 0], "a\\u0000b": [0, 0]}}',
    ],
    ids=range(10),
)  # fmt: skip
def test_a_manifest_that_is_none(tmp_path, text):
    good, bad = write(tmp_path, 1, 1.0), write(tmp_path, 2, 2.0)
    (bad / "manifest.json").write_text(text)
    assert checkpoint.newest(tmp_path) == good
    assert "no readable manifest" in checkpoint.fault_of(bad)


@pytest.mark.parametrize("victim", ["manifest.json", "state.json", ".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("kind", ["fifo", "link", "device"])
def test_a_checkpoint_of_pipes_and_links(tmp_path, victim, kind):
    """Nothing is waited for, and nothing outside is read."""
    good, bad = write(tmp_path, 1, 1.0), write(tmp_path, 2, 2.0)
    (bad / victim).unlink()
    if kind == "fifo":
        os.mkfifo(bad / victim)
    else:
        (bad / victim).symlink_to("/dev/zero" if kind == "device" else good / victim)
    assert checkpoint.newest(tmp_path) == good


@pytest.mark.parametrize("text", ["[]", "3", "{", "[" * 100_000, '{"options": [1]}', "{}"])
def test_a_state_that_is_none(tmp_path, text):
    folder = write(tmp_path, 1, 1.0)
    (folder / "state.json").write_text(text)
    with pytest.raises(UsageError, match=r"state\.json (is no|must hold|does not hold)"):
        checkpoint.options_in(folder)


LIES = {
    "outside": lambda m: each(m, relative_path="../elsewhere.distcp"),
    "absolute": lambda m: each(m, relative_path="/dev/zero"),
    "parent": lambda m: each(m, relative_path=".."),
    "no name": lambda m: each(m, relative_path=3),
    "longer": lambda m: each(m, length=1 << 40),
    "before": lambda m: each(m, offset=-5),
    "compressed": lambda m: each(m, transform_descriptors=["stream.zstd"]),
    "larger": lambda m: setattr(m.state_dict_metadata["model.w"], "size", torch.Size([1 << 40])),
    "shapeless": lambda m: setattr(m.state_dict_metadata["model.w"], "size", "wide"),
    "no type": lambda m: setattr(m.state_dict_metadata["model.w"].properties, "dtype", 4),
    "no tensor": lambda m: m.state_dict_metadata.update({"model.w": 5}),
    "no table": lambda m: setattr(m, "storage_data", [1]),
    "nothing": lambda m: m.__dict__.clear(),
}


def each(metadata, **values):
    for info in metadata.storage_data.values():
        info.__dict__.update(values)


@pytest.mark.parametrize("lie", LIES)
def test_a_table_of_contents_that_lies(tmp_path, little_memory, lie):
    folder = write(tmp_path, 1, 1.0)
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    LIES[lie](metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    for read in (checkpoint.names_in, lambda f: checkpoint.load(f, tensors(0.0))):
        with pytest.raises(UsageError, match=str(folder)):
            read(folder)


def test_values_that_are_no_tensors_come_back(tmp_path):
    kept = {"lr": 0.1, "betas": (0.9, 0.98), "name": "x", "w": torch.ones(2, dtype=torch.bfloat16)}
    folder = save(tmp_path, 1, {"group": kept}, {}, 2)
    found = {"lr": 0.0, "betas": (0.0, 0.0), "name": "", "w": torch.zeros(2, dtype=torch.bfloat16)}
    checkpoint.load(folder, {"group": found})
    assert found.pop("w").eq(1).all() and found == {k: v for k, v in kept.items() if k != "w"}


def test_the_copy_is_of_the_moment(tmp_path):
    """What changes while the files are written is not in them."""
    moving = tensors(1.0)
    with Writer(tmp_path, keep=9, keep_every=2) as writer:
        for step in range(1, 5):
            writer.start(step, moving, {"step": step})
            moving["model"]["w"] += 1
    for folder, expected in zip(checkpoint.steps_in(tmp_path), (1.0, 2.0, 3.0, 4.0)):
        target = tensors(0.0)
        checkpoint.load(folder, target)
        assert target["model"]["w"].eq(expected).all()
    with Writer(tmp_path, keep=1, keep_every=2) as writer:
        writer.start(5, moving, {"step": 5})
    assert [int(p.name[5:]) for p in checkpoint.steps_in(tmp_path)] == [2, 4, 5]


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
