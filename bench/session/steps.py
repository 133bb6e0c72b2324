"""Whole training steps of several variants, timed in turns on one device."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from bench import step
from bench.clock import Sample, sample
from bench.harness import OURS, Variant
from bench.kit import Kit
from bench.session.child import Bench
from bench.shapes import Shape
from eva_fast.planning.students import model_flops

NARROW = ("tuned half", "compile blocks")
"""The strongest plain variants that are quickly built."""
FIRST = 3
"""Steps before a variant is timed: compiling, choosing kernels, growing pools."""


def ours(bench: Bench) -> tuple[str, ...]:
    """eva_fast as it is and, on a GPU, as a CUDA graph."""
    return (OURS,) if bench.tiny else (OURS, step.CAPTURED)


@dataclass(slots=True)
class _Runner:
    variant: Variant
    peak: int
    first_seconds: float
    losses: list[float]
    samples: list[Sample] = field(default_factory=list)


def race(
    bench: Bench, shape: Shape, names: Sequence[str], seconds: float, rounds: int = 9
) -> dict[str, dict]:
    """Times the variants in turns and notes a finding "step" of each; returns them by name.

    All start from one set of weights and see one batch, so that their first losses can be compared.
    Where not all fit into memory side by side, those that do are timed first, then the others beside
    eva_fast, where that fits."""
    end = time.monotonic() + min(seconds, bench.left())
    found: dict[str, dict] = {}
    group: dict[str, _Runner] = {}
    for number, name in enumerate(names):
        if number and time.monotonic() > end - 0.35 * seconds:  # the rest is for the timing
            bench.skip(f"{shape.label} {', '.join(names[number:])}")
            break
        fits = _build(bench, name, shape, group)
        if not fits and group:
            found |= _time(bench, shape, group, end, rounds)
            group.clear()
            if OURS in names and name != OURS:
                _build(bench, OURS, shape, group)
            fits = _build(bench, name, shape, group)
        if not fits and group:
            group.clear()
            fits = _build(bench, name, shape, group)
        if not fits:
            bench.notes.add("step", **_about(shape, name), missing="out of memory")
    if not group.keys() <= found.keys():
        found |= _time(bench, shape, group, end, rounds)
    return found


def _about(shape: Shape, name: str) -> dict:
    return {"model": shape.name, "batch": shape.batch, "variant": name}


def _build(bench: Bench, name: str, shape: Shape, group: dict[str, _Runner]) -> bool:
    """Builds a variant into the group, which alone keeps it. False where memory does not suffice;
    any other failure is noted and leaves the group as it was."""
    bench.free()
    cuda, start = not bench.tiny, time.monotonic()
    before = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    try:
        torch.manual_seed(0)
        variant = step.make(name, shape, Kit("step", cuda, False), None)
        losses = [float(variant.call()[0]) for _ in range(FIRST)]
    except torch.OutOfMemoryError:
        return False
    except Exception as error:
        bench.failures += 1
        text = f"{type(error).__name__}: {error}"[:600]
        bench.notes.add("failure", what=f"step {shape.label} {name}", error=text)
        return True
    peak = torch.cuda.max_memory_allocated() - before if cuda else 0
    group[name] = _Runner(variant, peak, time.monotonic() - start, losses)
    return True


def _time(
    bench: Bench, shape: Shape, group: dict[str, _Runner], end: float, rounds: int
) -> dict[str, dict]:
    for number in range(rounds):
        if number >= 3 and time.monotonic() > end:
            break
        names = list(group)
        turn = number % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            with bench.attempt(f"timing {shape.label} {name}"):
                group[name].samples.append(sample(group[name].variant.call, bench.device))
    found = {}
    for name, runner in group.items():
        if runner.samples:
            found[name] = _finding(shape, name, runner)
            bench.notes.add("step", **found[name])
    return found


def _finding(shape: Shape, name: str, runner: _Runner) -> dict:
    wall, device, host = (
        statistics.median(getattr(s, clock) for s in runner.samples)
        for clock in ("wall", "device", "host")
    )
    # back to back the host's next step hides behind the device's last one
    seconds = max(device, host)
    return {
        **_about(shape, name),
        "device_ms": 1e3 * device,
        "wall_ms": 1e3 * wall,
        "host_ms": 1e3 * host,
        "all_device_ms": [round(1e3 * s.device, 3) for s in runner.samples],
        "images_per_second": shape.batch / seconds,
        "tflops": model_flops(shape.sizes, shape.batch, shape.masked) / seconds / 1e12,
        "peak_gb": runner.peak / 1e9,
        "first_seconds": round(runner.first_seconds, 1),
        "losses": runner.losses,
    }
