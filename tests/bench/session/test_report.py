"""Findings into JSON, Markdown and the shares of a device's peak."""

import json

import pytest

from bench.session import report
from bench.session.notes import Notes
from bench.session.plots import draw

MACHINE = {
    "device": "Some GPU", "kind": "cuda", "slug": "some-gpu", "torch": "2.11",
    "rates": {"kind": "data sheet", "flops": 1e15},
}  # fmt: skip
STEP = dict(
    model="ViT-g/14", batch=32, device_ms=100.0, wall_ms=120.0, host_ms=40.0, tflops=450.0,
    images_per_second=320.0, peak_gb=30.0,
)  # fmt: skip


@pytest.fixture
def out(tmp_path):
    (tmp_path / report.MACHINE).write_text(json.dumps(MACHINE))

    def add(stage, kind, **values):
        Notes(tmp_path, stage).add(kind, **values)

    add("session", "outcome", name="step", outcome="done", seconds=12.5, status=0)
    add("tests", "tests", finished=False, passed=3)
    add("tests", "tests", finished=True, passed=7, failed=1)
    add("tests", "failure", what="tests/a.py::b", error="line one\nline | two")
    add("ceilings", "ceiling", what="copy", bytes_per_second=4.1e12)
    flops = {"forward": 6e14, "dx": 7.5e14, "dw": 5e14}
    add("ceilings", "ceiling", what="product fc1", sizes=[8, 4, 2], flops=flops)
    add("step", "step", variant="eva_fast captured", **STEP)
    add("step", "step", variant="reference", model="ViT-g/14", batch=32, missing="out of memory")
    add("attention", "attention", implementation="triton", shape=[32, 257, 257, 16, 88],
        dtype="bfloat16", error=[1e-3] * 4, forward_us=80.0, backward_us=200.0)  # fmt: skip
    times = {"device_us": 5.0, "wall_us": 60.0, "host_us": 55.0}
    variants = {"eva_fast": times, "tuned": {**times, "device_us": 10.0}}
    add("ops", "op", op="bias_gelu", mode="forward", shape="ViT-g/14 b32", variants=variants)
    kernel = {"name": "gemm|128", "calls": 40.0, "ms": 12.0, "mean_us": 300.0}
    add("profile", "profile", model="ViT-g/14", batch=32, variant="eva_fast", kernels=800.0,
        busy_ms=99.0, gap_ms=1.5, gaps=3.0, top=[kernel])  # fmt: skip
    add("models", "skipped", what="ViT-ti batch 128")
    return tmp_path


def test_every_kind_of_finding_has_its_table(out):
    path, page = report.write(out)
    assert (path.name, page.name) == ("some-gpu.json", "some-gpu.md")
    assert len(json.loads(path.read_text())["findings"]) == 12
    text = page.read_text()
    assert all(f"## {title}" in text for title, *_ in report.TABLES)
    # 450 of 1000 by the data sheet, and of the quickest product, 750
    row = (
        "| ViT-g/14 | 32 | eva_fast captured | 100.00 | 120.00 | 40.00 | 320.0 | 45.0 % | 60.0 % |"
    )
    assert row in text and "| reference | out of memory |" in text
    assert "| 7 | 1 | 0 | yes |" in text  # the last count, not the sum of all
    assert "line one line \\| two" in text and "gemm 128" in text
    assert "busy 99.00 ms, waiting 1.50 ms (3 gaps above 5 us)" in text


def test_what_a_terminal_shows(out):
    text = report.short(out)
    assert "step  done  12.5" in text and "tests/a.py::b" in text and "eva_fast captured" in text


def test_pictures_stand_in_the_page(out):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    drawn = draw(out)
    assert [p.name for p in drawn] == [f"some-gpu-{n}.png" for n in ("steps", "attention", "ops")]
    assert all(f"({p.name})" in report.write(out)[1].read_text() for p in drawn)


def test_nothing_found_is_an_empty_page(tmp_path):
    _, page = report.write(tmp_path)
    assert (
        page.read_text().startswith("# Measured on this machine") and "##" not in page.read_text()
    )
