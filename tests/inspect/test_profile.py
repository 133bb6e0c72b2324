"""`eva-fast profile` on a tiny run: everything it promises is there and adds up."""

import json
import sys

import pytest

from eva_fast.config import Config
from eva_fast.inspect.profile import profile, to_text

OPTIONS = dict(
    model="eva_ti_patch16_32", embed_dim=64, depth=2, num_heads=2, mlp_hidden=96, batch_size=4
)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    out = tmp_path_factory.mktemp("profile") / "here"
    config = Config.from_options({**OPTIONS, "workers": 0, "kernels": "torch"})
    return profile(config, steps=2, warmup=1, watched=2, out=out), out


def test_figures(profiled):
    found, _ = profiled
    assert found.images_per_second == pytest.approx(4 / found.step_seconds)
    assert 0 <= found.data_wait <= 1
    assert 0 < found.mfu < 1
    assert 0 < found.host_seconds <= found.step_seconds * 1.001 and found.device_seconds is None
    assert found.peak_bytes > 0
    assert sum(op.share for op in found.top) <= 1.0001
    assert any("mm" in op.name for op in found.top)
    assert [op.seconds for op in found.top] == sorted(
        (op.seconds for op in found.top), reverse=True
    )


def test_files(profiled):
    found, out = profiled
    trace = json.loads(found.trace.read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert any("addmm" in str(name) for name in names)
    assert found.memory.read_bytes().startswith(b"\x89PNG")
    summary = json.loads((out / "profile.json").read_text())
    assert summary["batch"] == 4 and summary["folder"] is None
    assert sorted(p.name for p in out.iterdir()) == ["memory.png", "profile.json", "trace.json"]


def test_text(profiled):
    text = to_text(profiled[0])
    assert "images/s" in text and "MFU" in text and "waiting for data" in text
    assert "ms a step, device the same" in text


def test_refuses_bad_use(profiled):
    _, out = profiled
    config = Config.from_options(OPTIONS)
    with pytest.raises(ValueError, match="already holds a profile"):
        profile(config, out=out)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        profile(config, steps=0)


def test_a_missing_plot_library_costs_no_number(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    config = Config.from_options({**OPTIONS, "workers": 0, "kernels": "torch"})
    found = profile(config, steps=1, warmup=1, watched=1, out=tmp_path / "here")
    assert found.memory is None and found.images_per_second > 0
    assert sorted(p.name for p in (tmp_path / "here").iterdir()) == ["profile.json", "trace.json"]
    assert "matplotlib" in caplog.text
