"""One race for every choice: candidates take turns, the smallest median of device time wins.

On a GPU a sample is the time between two events on the device, and the device sleeps first, so that
the host has issued everything before the first event passes: what is measured is what a step pays
where the host runs ahead. On a CPU it is wall time.

A candidate that fails is left out with its reason in the log: one that runs out of memory here
would not get through a run either. `timed_by` puts another clock in place, so that a test decides
who wins.
"""

import contextlib
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

log = logging.getLogger(__name__)
ROUNDS = 5  # turns that count, at most
FEWEST = 2  # ... and at least, for those that are clearly behind
CLEARLY = 1.25  # times the slowest turn of the leader
LONG = 2.0  # seconds after which one turn more than the fewest must do
Run = Callable[[], Any]
# What one turn of a candidate is: (how many times a step does it, the call), each made ready before
# its own timing starts.
Calls = Callable[[], Iterable[tuple[float, Run]]]
Clock = Callable[[str, Run, torch.device], float]

_SLEEP_CYCLES = 1_000_000  # about half a millisecond
_MOST_CYCLES = 1_000_000_000
_CYCLES_A_SECOND = 3e9  # more than any GPU's: half as long again as the host needed


def seconds(name: str, run: Run, device: torch.device) -> float:
    """Device seconds of one call of `run` (the default clock)."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    sleep = _SLEEP_CYCLES
    with torch.cuda.device(device):
        while True:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(sleep)
            started = time.perf_counter()
            begin.record()
            run()
            end.record()
            issued = time.perf_counter() - started
            ahead = not begin.query()  # the device slept until the host was through
            end.synchronize()
            if ahead or sleep >= _MOST_CYCLES:
                return begin.elapsed_time(end) / 1e3
            sleep = min(_MOST_CYCLES, max(4 * sleep, int(issued * _CYCLES_A_SECOND)))


_clock: Clock = seconds


@contextlib.contextmanager
def timed_by(clock: Clock) -> Iterator[None]:
    """While this is open, `clock(candidate, run, device)` gives the seconds of each sample; it must
    call `run`."""
    global _clock
    before, _clock = _clock, clock
    try:
        yield
    finally:
        _clock = before


def race(what: str, candidates: Mapping[str, Calls], device: torch.device) -> dict[str, float]:
    """{candidate: median seconds of a turn}, without those that failed.

    what: names the race in the log. Empty where all failed. A candidate that is clearly behind in
    all of its first turns takes no more of them, and a race that takes long is decided earlier.
    """
    start = time.perf_counter()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    racing = list(candidates)
    for turn in range(ROUNDS + 1):
        for name in list(racing):
            try:
                total = sum(n * _clock(name, run, device) for n, run in candidates[name]())
            except Exception as error:  # a library refuses a shape in ways of its own
                del times[name]
                racing.remove(name)
                _leave_out(what, name, device, error)
                continue
            if turn:  # the first turn compiles and allocates
                times[name].append(total)
        if turn >= FEWEST:
            best = max(min((times[name] for name in racing), key=statistics.median, default=[0]))
            racing = [name for name in racing if min(times[name]) <= CLEARLY * best]
            if len(racing) < 2 or (turn > FEWEST and time.perf_counter() - start > LONG):
                break
    return {name: statistics.median(taken) for name, taken in times.items()}


def _leave_out(what: str, name: str, device: torch.device, error: Exception) -> None:
    memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    reason = "runs out of memory" if memory else f"fails ({type(error).__name__}: {error})"
    log.warning("%s: %s %s and is left out", what, name, reason)
    if device.type == "cuda":
        torch.cuda.empty_cache()
