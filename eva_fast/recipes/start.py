"""Where the time before the first step goes."""

import logging
import time

log = logging.getLogger(__name__)


class Start:
    """Names the parts of a run's start as they are done, and says in one line after the first step
    what each took."""

    def __init__(self) -> None:
        self._mark = time.monotonic()
        self.seconds: dict[str, float] = {}
        self._said = False

    def done(self, part: str) -> None:
        """All the time since the last call, or since the start, was this part's."""
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._mark
        self._mark = now

    def first_step(self, step: int) -> None:
        """Called after each step; the first one ends the start."""
        if not self._said:
            self._said = True
            self.done("first step")
            parts = ", ".join(f"{part} {s:.1f}" for part, s in self.seconds.items())
            log.info("first step after %.1f s: %s", sum(self.seconds.values()), parts)
