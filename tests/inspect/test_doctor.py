"""The doctor's report is whole and true."""

import importlib.metadata
import json
import os
import subprocess
import sys

import torch
from rich.console import Console

from eva_fast import native
from eva_fast.inspect.doctor import diagnose, render
from eva_fast.ops import choose


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


def test_without_the_library_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr(native, "obstacle", lambda: "is not built: install again")
    console = Console(record=True, width=200)
    console.print(render(diagnose()))
    text = console.export_text()
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
