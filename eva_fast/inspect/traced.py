"""What is read off torch.profiler after the steps that it watched."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eva_fast.errors import UsageError
from eva_fast.evaluation.figures import pyplot

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TopOperator:
    """An operator of the profiled steps; its own time, without what it called."""

    name: str
    calls: int
    seconds: float
    share: float


def device_seconds(profiler: Any, device: torch.device, watched: int) -> float | None:
    """What the kernels of one of the `watched` steps took; None on a CPU."""
    if device.type != "cuda":
        return None
    return sum(e.self_device_time_total for e in profiler.key_averages()) / 1e6 / watched


def top_operators(profiler: Any, device: torch.device, most: int = 15) -> tuple[TopOperator, ...]:
    """Operators by their own time on the device."""
    name = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    averages = profiler.key_averages()
    total = sum(getattr(e, name) for e in averages) or 1
    largest = sorted(averages, key=lambda e: -getattr(e, name))[:most]
    return tuple(
        TopOperator(
            name=e.key,
            calls=e.count,
            seconds=getattr(e, name) / 1e6,
            share=getattr(e, name) / total,
        )
        for e in largest
        if getattr(e, name) > 0
    )


def memory_events(profiler: Any, device: torch.device) -> list[tuple[int, int]]:
    """(nanoseconds since the first, bytes above the level at the start) after each allocation and
    release on the device."""
    kind = torch._C._autograd.DeviceType.CUDA if device.type == "cuda" else None
    changes = [
        e
        for e in profiler.profiler.kineto_results.events()
        if e.name() == "[memory]" and (kind is None or e.device_type() == kind)
    ]
    changes.sort(key=lambda e: e.start_ns())
    level, found = 0, []
    for event in changes:
        level += event.nbytes()
        found.append((event.start_ns() - changes[0].start_ns(), level))
    return found


def draw_memory(events: list[tuple[int, int]], path: Path, device: torch.device) -> Path | None:
    """The figure's file, or None with a word in the log: a missing plot library costs no number."""
    try:
        plt = pyplot()
    except UsageError as error:
        log.warning("no picture of the memory: %s", error)
        return None
    figure, axes = plt.subplots(figsize=(7, 2.6))
    axes.fill_between(
        [t / 1e9 for t, _ in events],
        [level / 1e6 for _, level in events],
        step="post",
        color="#D55E00",
        alpha=0.7,
        linewidth=0,
    )
    axes.set_xlabel("seconds")
    axes.set_ylabel("MB above the start")
    axes.set_title(f"tensor memory of the profiled steps, {device.type}", fontsize=9, loc="left")
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return path
