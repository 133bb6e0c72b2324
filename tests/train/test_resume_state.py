"""What a run goes on from is checked before it is used: a checkpoint whose state was written by somebody
else, its checksums right, is one clear error."""

import json
import shutil
import zlib

import pytest

import eva_fast
from eva_fast.errors import UsageError
from tests.train.several import OPTIONS


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    out = tmp_path_factory.mktemp("begun") / "run"
    eva_fast.pretrain(out=out, **{**OPTIONS, "steps": 1})
    return out


def without(name):
    return lambda state: state.pop(name)


def put(*path):
    *path, last, value = path

    def change(state):
        for name in path:
            state = state[name]
        state[last] = value

    return change


CHANGES = {
    "no step": without("step"),
    "step": put("step", -1),
    "options": put("options", [1]),
    "loader": put("loader", 3),
    "feed": put("loader", "feed", []),
    "loaders": put("loaders", {"a": 1}),
    "kernels": put("kernels", ["native"]),
    "kernel": put("kernels", {"gemm": {}}),
    "position": put("loader", "feed", "position", -5),
    "epoch": put("loader", "feed", "epoch", "x"),
    "names": put("loader", "feed", "names", 7),
    "images": put("loader", "feed", "images", "x"),
    "tally": put("loader", "tally", None),
    "contents": put("loader", "contents", 5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_state_of_somebody_else_s(tmp_path, begun, change):
    out = tmp_path / "run"
    shutil.copytree(begun, out)
    folder = out / "checkpoints/step_000000001"
    state = json.loads((folder / "state.json").read_text())
    CHANGES[change](state)
    text = json.dumps(state).encode()
    (folder / "state.json").write_bytes(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.json"] = [len(text), zlib.crc32(text)]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError):
        eva_fast.pretrain(out=out, resume="auto", **{**OPTIONS, "steps": 2})
