"""Result files into tables, Markdown and plots."""

import json

import pytest

from bench import machine
from bench.report import markdown, merge, read_results, table, write_report


def variant(seconds, speedup, batch=8):
    return {
        "seconds": {"p20": seconds, "p50": seconds, "p80": seconds},
        "rounds": 5,
        "first_call_seconds": seconds,
        "speedup": {
            base: {"median": s, "q1": s * 0.9, "q3": s * 1.1} for base, s in speedup.items()
        },
        "peak_bytes": 3_000_000,
        "touched_bytes": 1_000_000,
        "images_per_second": batch / seconds,
    }


def entry(subject="step", shape="ViT-Ti/14 b8 float32", batch=8, seconds=0.5):
    return {
        "kind": "measured",
        "subject": subject,
        "mode": "step",
        "shape": shape,
        "batch": batch,
        "flops": 10**9,
        "baseline": "reference",
        "variants": {
            "reference": variant(2 * seconds, {}, batch),
            "tuned": variant(1.5 * seconds, {"reference": 4 / 3}, batch),
            "eva_fast": variant(seconds, {"reference": 2.0, "tuned": 1.5}, batch),
        },
        "missing": {"apex": "apex is not installed"},
    }


MACHINE = {
    "device": "Some CPU, 2 threads",
    "kind": "cpu",
    "threads": 2,
    "torch": "2.15",
    "git": "abc",
    "date": "2026-01-01 00:00 UTC",
    "rates": {"kind": "measured", "flops": 1e11, "stream_bytes": 1e10},
}


def test_merge_replaces_what_was_measured_again_and_stamps_it():
    old = merge(None, MACHINE, [entry(), entry("optimizer")])
    again = merge(old, {**MACHINE, "git": "def"}, [entry(seconds=0.25)])
    found = {e["subject"]: e for e in again["entries"]}
    assert found["step"]["git"] == "def"
    assert found["step"]["variants"]["eva_fast"]["seconds"]["p50"] == 0.25
    assert found["optimizer"]["git"] == "abc"


def test_predictions_are_merged_and_shown():
    first = {
        "shape": "ViT-Ti/14 b8 float32",
        "formulation": "tuned",
        "measured_seconds": 2.0,
        "predicted_seconds": 1.8,
        "predicted_over_measured": 0.9,
    }
    second = {**first, "formulation": "official"}
    data = merge(merge(None, MACHINE, [entry()], [first]), MACHINE, [], [second])
    assert len(data["entries"]) == 1
    assert [p["formulation"] for p in data["predictions"]] == ["tuned", "official"]
    assert "| ViT-Ti/14 b8 float32 | tuned | 2.00 s | 1.80 s | 0.90 |" in markdown(data, {})


def test_tables_give_both_speedups_with_quartiles():
    text = table([entry()])
    page = markdown(merge(None, MACHINE, [entry()]), {})
    for words in (text, page):
        assert "2.00x (1.80-2.20)" in words and "1.50x (1.35-1.65)" in words
        assert "500.00 ms" in words
    assert "apex is not installed (step)" in page
    assert "| torch | 2.15 |" in page


def test_the_choice_of_kernels_is_shown():
    raced = {"bias_gelu": {"kind": "native", "milliseconds": {"torch": 2.0, "native": 0.5}}}
    page = markdown(merge(None, MACHINE, [{**entry(), "kernels": raced}]), {})
    assert "| step step | ViT-Ti/14 b8 float32 | bias_gelu | native | 2.000 | 0.500 |" in page
    assert "Which kernels" not in markdown(merge(None, MACHINE, [entry()]), {})


def test_report_writes_markdown_and_plots(tmp_path):
    steps = [entry(shape=f"ViT-Ti/14 b{b} float32", batch=b, seconds=b / 16) for b in (2, 4, 8)]
    path = tmp_path / "some-cpu.json"
    path.write_text(json.dumps(merge(None, MACHINE, [entry("block"), *steps])))
    written = write_report([path], tmp_path / "out")
    assert [p.name for p in written] == [
        "some-cpu.md",
        "some-cpu-speedup.png",
        "some-cpu-batch.png",
        "some-cpu-roofline.png",
    ]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in written[1:])
    assert "![Roofline](some-cpu-roofline.png)" in written[0].read_text()
    first = [p.read_bytes() for p in written]
    assert [p.read_bytes() for p in write_report([path], tmp_path / "out")] == first


def test_what_is_no_results_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="pytest bench/ --benchmark first"):
        read_results(tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="not a results file"):
        read_results(tmp_path / "other.json")


def test_header_names_no_host_or_path():
    import socket

    words = json.dumps(machine.header())
    assert socket.gethostname() not in words and "/" not in machine.slug(machine.header())
    assert {"device", "torch", "triton", "git", "threads", "driver"} <= machine.header().keys()
