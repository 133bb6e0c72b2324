"""How long a call takes: the device alone, the whole, and the host alone.

On a GPU the host issues work and the device does it, each in its own time. A step that runs again
and again takes the longer of the two; a captured one the device's. So both are measured: `device` with
the launches hidden behind a device that sleeps first (`eva_fast.ops.race.seconds`), `wall` from an
idle device to an idle device with nothing hidden, `host` until the last launch was issued.

The driver queues some thousand launches: of a call with more the device's time holds a part of the
host's. On a CPU the three are one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from eva_fast.ops.race import seconds as device_seconds

__all__ = ["DeviceClock", "Sample", "device_seconds", "sample"]


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of one call."""

    device: float
    wall: float
    host: float


class DeviceClock:
    """Device seconds of a call, after the L2 cache was overwritten; on a CPU wall time, or the time
    of all threads of the process."""

    def __init__(self, device: str, processor: bool = False):
        self.read = time.process_time if processor else time.perf_counter
        self.device = torch.device(device)
        self.flush: torch.Tensor | None = None
        if self.device.type == "cuda":
            size = torch.cuda.get_device_properties(self.device).L2_cache_size
            self.flush = torch.empty(max(4 * size, 2**26), dtype=torch.uint8, device=device)

    def __call__(self, call: Callable[[], Any], repeats: int) -> float:
        """Mean of so many calls."""
        if self.flush is None:
            start = self.read()
            for _ in range(repeats):
                call()
            return (self.read() - start) / repeats
        total = 0.0
        for _ in range(repeats):
            self.flush.zero_()
            total += device_seconds("", call, self.device)
        return total / repeats


def sample(call: Callable[[], Any], device: torch.device, repeats: int = 1) -> Sample:
    """Times `call` twice on a GPU: `repeats` calls back to back by the wall's clock, one by the
    device's; on a CPU the former alone."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    issued = time.perf_counter()
    if cuda:
        torch.cuda.synchronize(device)
    wall, host = (time.perf_counter() - start) / repeats, (issued - start) / repeats
    return Sample(device_seconds("", call, device) if cuda else wall, wall, host)
