"""Keeps the record of images that cannot be read: once each, and stops a run that has too many."""

import contextlib
import json
import math
import os
from pathlib import Path

from eva_fast.errors import RunError, UsageError

try:
    import fcntl
except ImportError:  # not on this platform: one process a run is then assumed
    fcntl = None  # type: ignore[assignment]

MIN_TRIED = 100
# What a line that is none may raise: half of one, or anything that somebody wrote.
NO_LINE = (ValueError, KeyError, TypeError, OverflowError, RecursionError)


class BadImages:
    """Counts the images tried and the bad ones, and writes each bad one once to a JSON-lines file.

    Several ranks may share the file: a writer first reads, under a lock, what the others added. A
    file of an earlier part of the run is continued. Images are told apart by their numbers, which stay
    where the data moves and every name becomes another.

    `path` None only counts. `limit` is the highest bearable share of bad images among those tried.
    """

    def __init__(self, path: str | os.PathLike | None, limit: float, epoch_size: int):
        if not 0 <= limit <= 1:
            raise UsageError(f"max_bad_fraction must be between 0 and 1, got {limit}")
        self.path = Path(path) if path is not None else None
        self.limit = limit
        self.epoch_size = epoch_size
        self.epoch, self.tried, self.bad = 0, 0, 0  # of the epoch in hand
        self._seen: set[int] = set()
        self._read_bytes = 0
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._read_new_lines()

    @property
    def count(self) -> int:
        """Different bad images on record."""
        return len(self._seen)

    def record(self, image_id: int, name: str, reason: str) -> None:
        """Writes one bad image, unless it has been written before."""
        if self.path is None:
            self._seen.add(image_id)
            return
        with open(self.path, "ab") as file, _locked(file):
            self._read_new_lines()
            if image_id not in self._seen:
                line = json.dumps({"id": image_id, "name": name, "reason": reason})
                # a run killed while writing leaves half a line: end it first
                half = file.tell() > self._read_bytes
                file.write(b"\n" * half + line.encode() + b"\n")
                self._seen.add(image_id)

    def add(self, epoch: int, tried: int, bad: int) -> None:
        """Counts a batch; raises RuntimeError where the share of bad images is above the limit.

        A part of an epoch is judged with two standard deviations to spare, so that chance does not
        stop a run whose data is within the limit; a whole epoch is judged exactly.
        """
        if epoch != self.epoch:
            self.epoch, self.tried, self.bad = epoch, 0, 0
        self.tried += tried
        self.bad += bad
        expected = self.limit * self.tried
        if self.tried < self.epoch_size:
            if self.tried < MIN_TRIED:
                return
            expected += 2 * math.sqrt(expected * (1 - self.limit))
        if self.bad > expected:
            where = f" (listed in {self.path})" if self.path else ""
            raise RunError(
                f"{self.bad} of {self.tried} images could not be read{where}: more than the "
                f"{self.limit:.0%} that max_bad_fraction allows. "
                "`eva-fast data check` lists what is wrong with a data set."
            )

    def _read_new_lines(self) -> None:
        assert self.path is not None
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as file:
            file.seek(self._read_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # the last line of a run that was killed while writing
                self._read_bytes += len(line)
                with contextlib.suppress(*NO_LINE):
                    entry = json.loads(line)
                    self._seen.add(int(entry["id"]))


@contextlib.contextmanager
def _locked(file):
    """Holds an exclusive lock on `file` where the file system has locks."""
    if fcntl is None:
        yield
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        file.flush()
        fcntl.flock(file, fcntl.LOCK_UN)
