"""A teacher in shards says what a whole one does, and its run is that of a whole one, bit for bit."""

import pytest

from eva_fast.train import checkpoint
from tests.train.several import done, lines, torchrun

pytestmark = [pytest.mark.dist, pytest.mark.slow]


def test_shards_give_the_features_of_the_whole_teacher(tmp_path):
    """Each kind of teacher, then two runs: losses, weights, pictures and what checkpoints say of the
    teacher are the same."""
    done(torchrun(2, "-m", "tests.train.teacher_worker", str(tmp_path)))
    whole, shared = tmp_path / "replicate", tmp_path / "shard"
    assert [a["loss"] for a in lines(whole)] == [b["loss"] for b in lines(shared)]
    for name in ("model.safetensors", "picture.png", "pictures/step_000000002.png"):
        assert (whole / name).read_bytes() == (shared / name).read_bytes()
    states = [checkpoint.read_state(out / "checkpoints/step_000000004") for out in (whole, shared)]
    assert states[0]["teacher"] == states[1]["teacher"] is not None
    assert [s["options"]["teacher_sharding"] for s in states] == ["replicate", "shard"]
