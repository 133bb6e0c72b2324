"""The doctor's report is whole and true."""

import importlib.metadata
import io
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from rich.console import Console

from eva_fast import native
from eva_fast.inspect.doctor import diagnose, render
from eva_fast.ops import choose, kept


def shown(report):
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(render(report))
    return console.export_text()


def test_report(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    report = json.loads(json.dumps(diagnose()))
    assert report["packages"]["torch"] == importlib.metadata.version("torch")
    assert report["cpp_kernels"] == native.available()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for op, kind in report["ops"].items():
        assert kind == choose.implementation(op, device)
    assert report["obstacles"]["packed_attention"]["math"] is None  # runs everywhere
    assert report["cpp_obstacle"] == native.obstacle()
    measured = {op for kept in report["measured"] for op in kept["choices"]}
    assert all(
        label.startswith("gemm ") for label in measured
    )  # asked for by the report itself; nothing else ran in this cache


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_newest_measured_choice_and_the_others_on_demand(tmp_path, monkeypatch, count):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    diagnose()  # the report may itself measure, and keep, what products run on
    own, now = diagnose()["measured_kept"], time.time() + 60
    for number in range(count):
        path = kept.file(torch.device("cpu"), {"run": number})
        kept.write(path, {f"op_{number}": kept.Choice("native", {"native": 1.0, "torch": 2.0})})
        os.utime(path, (now + number, now + number))
    names = [f"op_{n}" for n in reversed(range(count))]
    for everything, expected in ((False, names[:1]), (True, names)):
        report = diagnose(all_measured=everything)
        ours = [op for e in report["measured"] for op in e["choices"] if op[:3] == "op_"]
        assert ours == expected and report["measured_kept"] == count + own
        text = shown(report)
        assert all((name in text) == (name in expected) for name in names)
        assert ("doctor --all" in text) == (count + own > 1 and not everything)


def test_without_the_library_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr(native, "obstacle", lambda: "is not built: install again")
    text = shown(diagnose())
    assert "not built" in text and "install again" in text


def test_the_command_on_a_new_machine(tmp_path):
    """In a process of its own, with nothing imported or measured before."""
    done = subprocess.run(
        [sys.executable, "-m", "eva_fast", "doctor", "--json"],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "gemm" in json.loads(done.stdout)["ops"]
