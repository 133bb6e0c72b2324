"""`kernels="auto"`: every op is timed once for the run's real shapes, and the faster one runs.

One real training step is run while the arguments of every op are noted; then each op is replayed
with plain PyTorch and with the fused kernel in turn, and the smaller median wins. The choice is
kept on disk for this device, shape and versions, so that the next start costs nothing, and is
logged with its timings. `measured_choice` does the same for choices outside a run: the attention
library, the head's variant, a CPU's GEMM.
"""

import hashlib
import json
import logging
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from eva_fast import native
from eva_fast.ops import dispatch

log = logging.getLogger(__name__)
ROUNDS = 5
Choices = dict[str, dict[str, Any]]


Runs = dict[str, Callable[[], Any]]


def choose_kernels(
    step: Callable[[], Any],
    device: torch.device,
    what: dict[str, Any],
    parts: dict[str, Runs] | None = None,
) -> Choices:
    """Chooses the implementation of every op that `step` runs, for the whole process.

    Args:
        step: one training step without the optimiser's update kept: forward and backward.
        device: where it runs.
        what: names the shapes, for the cache: the same values give the same choice.
        parts: {op: {kind: forward and backward}} of ops that replace a part of the step, which
            the step itself does not run.

    Returns {op: {"kind": the choice, "milliseconds": {kind: median of all its calls a step}}}.
    """
    path = cache_file(device, what)
    found = read_choices(path)
    if found is None or any(entry["kind"] not in dispatch.KINDS for entry in found.values()):
        dispatch.set_kernels("auto")
        calls = _calls_of(step)
        found = {op: _race(op, list(calls[op].values()), device) for op in sorted(calls)}
        for op, runs in (parts or {}).items():
            found[op] = _fastest(in_turns(runs, device))
        write_choices(path, found)
        log.info("kernels measured, kept in %s", path)
    else:
        log.info("kernels as measured before (%s)", path)
    for op, entry in found.items():
        timings = ", ".join(f"{k} {ms:.2f} ms" for k, ms in entry["milliseconds"].items())
        log.info("  %-28s %-7s %s", op, entry["kind"], timings)
    dispatch.set_kernels("auto", {op: entry["kind"] for op, entry in found.items()})
    return found


def measured_choice(
    label: str,
    names: list[str],
    device: torch.device,
    what: dict[str, Any],
    seconds: Callable[[], dict[str, float]],
) -> str:
    """The fastest of `names`, measured at the first call on this machine, then read from disk.

    label: says what is chosen for: operation, shape, dtype. what: names the file, which holds all
    labels of one kind of choice. seconds: times the candidates, leaving out those that failed; the
    first of `names` is chosen where nothing is left.
    """
    path = cache_file(device, {**what, "among": names})
    entry = (read_choices(path) or {}).get(label)
    if entry is None or entry["kind"] not in names:
        found = seconds()
        entry = _fastest(found) if found else {"kind": names[0], "milliseconds": {}}
        if found:
            write_choices(path, {**(read_choices(path) or {}), label: entry})
    timings = ", ".join(f"{name} {ms:.3f} ms" for name, ms in entry["milliseconds"].items())
    log.info("%s on %s: %s (%s)", label, device, entry["kind"], timings or "no timing succeeded")
    return entry["kind"]


def cache_file(device: torch.device, what: dict[str, Any]) -> Path:
    """Where the choice for this device, these versions and shapes is kept."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    key = json.dumps([fingerprint(device), what], sort_keys=True, default=str)
    return (
        Path(root)
        / "eva_fast"
        / "kernels"
        / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    )


def fingerprint(device: torch.device) -> dict[str, Any]:
    """What a timing depends on beside the shapes: device, threads, versions, the C++ build."""
    import eva_fast

    libraries = {"torch": torch.__version__, "eva_fast": eva_fast.__version__}
    if device.type == "cuda":
        import triton

        name = torch.cuda.get_device_name(device)
        return {"device": name, "triton": triton.__version__, **libraries}
    return {
        "device": native.cpu_name(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "build": native.build(),
        **libraries,
    }


def kept_choices() -> list[dict[str, Any]]:
    """Every choice on disk, newest first: {"file", "choices"}."""
    folder = cache_file(torch.device("cpu"), {}).parent
    files = sorted(folder.glob("*.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    read = ((path, read_choices(path)) for path in files)
    return [{"file": str(path), "choices": found} for path, found in read if found is not None]


@dataclass(slots=True)
class _Call:
    """Arguments of an op's first call with these shapes, and how many calls a step are like it."""

    arguments: tuple
    count: int = 1


def _calls_of(step: Callable[[], Any]) -> dict[str, dict[Any, _Call]]:
    """{op: {shapes: call}} of everything `step` runs."""
    calls: dict[str, dict[Any, _Call]] = {}

    def note(op: str, function: Callable[..., Any], *arguments: Any) -> Any:
        shapes = pytree.tree_map_only(Tensor, lambda t: (t.shape, t.stride(), t.dtype), arguments)
        seen = calls.setdefault(op, {})
        if str(shapes) in seen:
            seen[str(shapes)].count += 1
        else:
            # a view of the same storage keeps the strides; ops that write get clones in the race
            seen[str(shapes)] = _Call(pytree.tree_map_only(Tensor, Tensor.detach, arguments))
        return function(*arguments)

    with dispatch.noting(note):
        step()
    return calls


def _race(op: str, calls: list[_Call], device: torch.device) -> dict[str, Any]:
    """Times one op's calls of a step, plain PyTorch and the fused kernel in turn."""
    fused = dispatch.fused_kind(op, device.type)
    kinds = ["torch", fused] if fused else ["torch"]
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(ROUNDS + 1):
        for kind in kinds:
            function = dispatch.function_of(op, kind)
            total = 0.0
            for call in calls:
                arguments = pytree.tree_map_only(Tensor, _copy, call.arguments)
                total += call.count * _seconds(function, arguments, device)
            if turn:  # the first turn compiles and allocates
                times[kind].append(total)
    return _fastest({kind: statistics.median(values) for kind, values in times.items()})


def in_turns(runs: Runs, device: torch.device) -> dict[str, float]:
    """Median seconds of each run."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 1):
        for name, run in runs.items():
            seconds = _seconds(run, (), device)
            if turn:  # the first turn compiles and allocates
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def _fastest(seconds: dict[str, float]) -> dict[str, Any]:
    """An entry of `Choices`."""
    kind = min(seconds, key=seconds.__getitem__)
    return {"kind": kind, "milliseconds": {name: s * 1e3 for name, s in seconds.items()}}


def _copy(tensor: Tensor) -> Tensor:
    """The same values and strides in new memory: an op may write to its arguments."""
    copy = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return copy.copy_(tensor)


def _seconds(function: Callable[..., Any], arguments: tuple, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        function(*arguments)
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    function(*arguments)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def read_choices(path: Path) -> Choices | None:
    """What `write_choices` kept there; None where there is nothing valid."""
    try:
        return {
            op: {
                "kind": str(entry["kind"]),
                "milliseconds": {k: float(ms) for k, ms in entry["milliseconds"].items()},
            }
            for op, entry in json.loads(path.read_text()).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # absent, or not ours: measured again


def write_choices(path: Path, found: Choices) -> None:
    """Keeps a choice on disk, whole or not at all; a disk that refuses costs a warning."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(json.dumps(found, indent=1))
        draft.replace(path)
    except OSError as error:
        log.warning(
            "the choice of kernels cannot be kept (%s); it is measured again next time", error
        )
