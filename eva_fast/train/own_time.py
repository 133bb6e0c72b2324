"""What a process takes for the parts of a step in which it waits for no other: teacher and optimiser.

A step takes all processes of a run as long as the slowest, which each waits for in the exchanges; only
such parts tell them apart. Measured on the device (events of CUDA, read at log points), on a CPU by the
clock.
"""

import contextlib
import time
from collections.abc import Iterator

import torch


class OwnTime:
    """Adds up the time of `part` blocks."""

    def __init__(self, device: torch.device):
        self._device, self._seconds = device, 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def part(self) -> Iterator[None]:
        """Around work of this process alone; nothing in it waits for the device."""
        if self._device.type != "cuda":
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._events.append((begin, end))

    def take(self) -> float:
        """Seconds since it was last asked. Waits for the device."""
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1e3
        seconds, self._seconds = self._seconds, 0.0
        self._events.clear()
        return seconds
