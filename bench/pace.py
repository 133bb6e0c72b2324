"""How long each case of `--quick` may take, by the clock: the whole keeps to its time on slow machines
too, with fewer rounds first and then with fewer cases."""

import time
from dataclasses import dataclass, field, replace

from bench.harness import Settings

QUICK_SECONDS = 280.0
"""Of the five minutes, without Python's start and the report."""
USUAL = Settings(seconds=0.7, rounds=15, least_rounds=3)
# A case is set up, compared and weighed beside being timed.
_TIMED_SHARE = 0.3


@dataclass(slots=True)
class Pace:
    """Of a run with so many cases."""

    cases: int
    seconds: float = QUICK_SECONDS
    started: float = field(default_factory=lambda: time.monotonic())
    begun: int = 0

    def next(self) -> Settings | None:
        """Settings of the next case; None where the time is up."""
        left = self.seconds - (time.monotonic() - self.started)
        share = left / max(1, self.cases - self.begun)
        self.begun += 1
        if left <= 0:
            return None
        if share * _TIMED_SHARE >= USUAL.seconds:
            return USUAL
        return replace(USUAL, seconds=share * _TIMED_SHARE, least_rounds=2)
