"""Choices on disk: one file for each device, build, set of versions and subject, so that the next
start measures nothing."""

import functools
import hashlib
import importlib.metadata
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eva_fast import files, native
from eva_fast.documents import read_object

log = logging.getLogger(__name__)
# Packages that bring implementations, beside PyTorch and Triton.
LIBRARIES = ("flash-attn", "flash-attn-3", "xformers")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which implementation was chosen, and what it was measured against."""

    implementation: str
    milliseconds: dict[str, float] = field(default_factory=dict)
    """Median of each candidate; empty where nothing was timed."""

    @classmethod
    def fastest(cls, seconds: dict[str, float]) -> "Choice":
        """Of measured candidates, the first of equals. ValueError where there is none."""
        best = min(seconds, key=seconds.__getitem__)
        return cls(best, {name: s * 1e3 for name, s in seconds.items()})

    def __str__(self) -> str:
        times = ", ".join(f"{name} {ms:.3f} ms" for name, ms in self.milliseconds.items())
        return f"{self.implementation} ({times or 'no timing'})"


Choices = dict[str, Choice]


def file(device: torch.device, subject: dict[str, Any]) -> Path:
    """Where choices for this subject are kept, for this device and these versions."""
    key = json.dumps([fingerprint(device), subject], sort_keys=True, default=str)
    return _folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def fingerprint(device: torch.device) -> dict[str, Any]:
    """What a timing depends on beside the shapes: device, threads, versions, the C++ build."""
    import eva_fast

    versions = {"torch": torch.__version__, "eva_fast": eva_fast.__version__}
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return {"device": name, **versions, **_libraries()}
    return {
        "device": native.cpu_name(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "build": native.build() if native.available() else None,  # a stale one is there, and unused
        **versions,
    }


def read(path: Path) -> Choices | None:
    """What `write` kept there; None where there is nothing valid."""
    try:
        return {
            op: Choice(
                str(entry["implementation"]),
                {name: float(ms) for name, ms in entry["milliseconds"].items()},
            )
            for op, entry in read_object(path).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None  # absent, or not ours: measured again


def write(path: Path, choices: Choices) -> None:
    """Keeps choices, whole or not at all; a disk that refuses costs a warning."""
    text = {
        op: {"implementation": c.implementation, "milliseconds": c.milliseconds}
        for op, c in choices.items()
    }
    try:
        with files.atomic_write(path) as draft:
            draft.write_text(json.dumps(text, indent=1))
    except OSError as error:
        log.warning(
            "the choice of kernels cannot be kept (%s); it is measured again next time", error
        )


def everything() -> list[tuple[Path, Choices]]:
    """Every choice on disk, newest first."""
    paths = sorted(_folder().glob("*.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    found = ((path, read(path)) for path in paths)
    return [(path, choices) for path, choices in found if choices is not None]


def _folder() -> Path:
    return files.cache_folder("kernels")


@functools.cache
def _libraries() -> dict[str, str]:
    """Versions of what is installed of Triton and `LIBRARIES`."""
    installed = {d.name: d.version for d in importlib.metadata.distributions() if d.name}
    return {name: installed[name] for name in ("triton", *LIBRARIES) if name in installed}
