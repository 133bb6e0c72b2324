"""What a result was measured on. No host names, no paths."""

import datetime
import platform
import re
import subprocess
from pathlib import Path

import torch

from eva_fast import native
from eva_fast.planning.cpu import measure_cpu
from eva_fast.planning.devices import DEVICES


def _run(*words: str) -> str | None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def git_sha() -> str | None:
    """The commit of the checkout, "+" behind it where tracked files differ."""
    root = str(Path(__file__).parent.parent)
    sha = _run("git", "-C", root, "rev-parse", "--short=12", "HEAD")
    changed = sha and _run(
        "git", "-C", root, "status", "--porcelain", "-uno", "--", ":!bench/results"
    )
    return f"{sha}+" if changed else sha


def _triton() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def header() -> dict:
    """Device, driver, versions, commit, threads and time, as plain values."""
    gpu = torch.cuda.is_available()
    threads = torch.get_num_threads()
    return {
        "device": torch.cuda.get_device_name()
        if gpu
        else f"{native.cpu_name()}, {threads} threads",
        "kind": "cuda" if gpu else "cpu",
        "cpu": native.cpu_name(),
        "cpu_model": cpu_model(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "driver": _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if gpu
        else None,
        "cuda": torch.version.cuda if gpu else None,
        "torch": torch.__version__,
        "triton": _triton(),
        "python": platform.python_version(),
        "git": git_sha(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def slug(machine: dict) -> str:
    """File name of a device's results. A processor's name may be as short as its maker's, so its
    model and instruction set belong to it: results of another machine are never overwritten."""
    words = [machine["device"]]
    if machine["kind"] == "cpu":
        words += [str(machine.get("cpu_model") or ""), str(machine.get("capability") or "")]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def cpu_model() -> str | None:
    """Family and model of the processor by number, e.g. "family 25 model 17"."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = [re.search(rf"^{name}\s*:\s*(\d+)$", text, re.M) for name in ("cpu family", "model")]
    return "family {} model {}".format(*(f[1] for f in found if f)) if all(found) else None


def rates() -> dict:
    """Roofs of the roofline plot: a measured CPU, or a GPU's data sheet."""
    if torch.cuda.is_available():
        return sheet()
    cpu = measure_cpu(torch.get_num_threads())
    points = cpu.stream.points
    return {
        "kind": "measured",
        "flops": cpu.peak_flops["float32"],
        "stream_bytes": points[-1][1],
        "stream_points": points,
        "gemm_points": cpu.gemm["float32"].points,
    }


def sheet() -> dict:
    """A GPU's data sheet at the shares that `eva_fast.planning.devices` assumes; empty if none."""
    name = torch.cuda.get_device_name().lower() if torch.cuda.is_available() else ""
    words = {"b200": "b200", "h200": "h200", "h100": "h100", "a100": "a100-80"}
    key = next((k for w, k in words.items() if w in name), None)
    if key is None:
        return {}
    gpu = DEVICES[key]
    return {
        "kind": "data sheet",
        "flops": gpu.peak_flops["bfloat16"],
        "stream_bytes": gpu.stream.points[0][1],
    }
