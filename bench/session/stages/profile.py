"""The kernels of a ViT-g step by their time, and how long the device waited between them."""

import torch
from torch.profiler import ProfilerActivity

from bench import step
from bench.kit import Kit
from bench.session.child import Bench
from bench.session.steps import ours

STEPS = 2
TOP = 60
GAP_US = 5.0
"""Shorter ones are those between any two kernels."""


def run(bench: Bench) -> None:
    for variant in ours(bench):
        with bench.attempt(f"profile of {variant}"):
            _watch(bench, variant)
        bench.free()


def _watch(bench: Bench, variant: str) -> None:
    shape = bench.shape("g", 32)
    call = step.make(variant, shape, Kit("step", not bench.tiny, False)).call
    for _ in range(3):
        call()
    activity = ProfilerActivity.CPU if bench.tiny else ProfilerActivity.CUDA
    with torch.profiler.profile(activities=[activity], acc_events=True) as profiler:
        for _ in range(STEPS):
            call()
        if not bench.tiny:
            torch.cuda.synchronize()
    kind = "CPU" if bench.tiny else "CUDA"
    events = [
        (e.start_ns() / 1e3, e.duration_ns() / 1e3, e.name())
        for e in profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
        if str(e.device_type()).endswith(kind) and e.duration_ns() > 0
    ]
    found = summary(events, STEPS)
    bench.notes.add("profile", model=shape.name, batch=shape.batch, variant=variant, **found)


def summary(events: list[tuple[float, float, str]], steps: int) -> dict:
    """events: (start, duration, name) in microseconds. Per step: busy and waiting time, and the
    kernels with the most time."""
    by_name: dict[str, list[float]] = {}
    busy, gaps, end = 0.0, [], min((start for start, _, _ in events), default=0.0)
    for start, duration, name in sorted(events):
        by_name.setdefault(name, []).append(duration)
        if start > end:
            gaps.append(start - end)
        busy += max(0.0, start + duration - max(end, start))
        end = max(end, start + duration)
    top = sorted(by_name.items(), key=lambda kernel: -sum(kernel[1]))[:TOP]
    return {
        "kernels": len(events) / steps,
        "busy_ms": busy / 1e3 / steps,
        "gap_ms": sum(gaps) / 1e3 / steps,
        "gaps": sum(gap > GAP_US for gap in gaps) / steps,
        "top": [
            {
                "name": name[:200],
                "calls": len(taken) / steps,
                "ms": sum(taken) / 1e3 / steps,
                "mean_us": sum(taken) / len(taken),
            }
            for name, taken in top
        ],
    }
