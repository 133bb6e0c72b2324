"""One uninterrupted run of a feed: the ring, the workers, and the batches they fill."""

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from eva_fast.data.loader.batch import Batch, host_value
from eva_fast.data.loader.feeds import Feed
from eva_fast.data.loader.maker import Bad, Maker
from eva_fast.data.loader.ring import Ring
from eva_fast.data.loader.upload import Upload, filled
from eva_fast.data.loader.workers import Chunks, Done, WorkerPool
from eva_fast.data.samples.fields import IDS, VIEWS

logger = logging.getLogger(__name__)

PREFETCH = 2  # batches made ahead of the one in use, and enough of them for ...
TICKETS_PER_WORKER = 2
_PATIENCE_SECONDS = 60.0


@dataclass(slots=True)
class Result:
    """What is known of a batch besides its rows."""

    epoch: int = 0
    tried: int = 0
    bad_tries: int = 0
    bad: list[Bad] = field(default_factory=list)
    chunks: int = 0
    reported: Any = None


class Engine:
    """Makes batches 0, 1, 2, ... of a feed from `state` on, with or without worker processes."""

    def __init__(
        self,
        feed: Feed,
        maker: Maker,
        workers: int,
        device: torch.device,
        state: dict[str, Any],
    ):
        self._run = feed.start(state)
        self._maker = maker
        self._fields = [*maker.fields, IDS, VIEWS]
        on_gpu = device.type == "cuda"
        self._chunks = Chunks(feed.batch_size)
        ahead = max(PREFETCH, -(-TICKETS_PER_WORKER * workers // self._chunks.count))
        slots = 1 + (ahead if workers else 0) + (Upload.IN_FLIGHT if on_gpu else 0)
        self._ring = Ring(slots, feed.batch_size, self._fields)
        self._results: dict[int, Result] = {}
        self._next = 0  # the batch to hand out next
        self._pool: WorkerPool | None = None
        self._payloads = None
        if workers:
            self._pool = WorkerPool(workers, self._chunks, self._fill, self._run.reader())
            for batch in range(self._ring.slots):
                self._pool.order(batch)
        else:
            reader = self._run.reader()
            self._payloads = reader(self._chunks) if reader is not None else None
        # after the fork: what is pinned belongs to this process alone
        self._upload = Upload(self._ring, self._fields, device, not feed.once) if on_gpu else None

    def _fill(self, batch: int, first: int, end: int, payload: Any) -> Any:
        rows = self._ring.rows(batch % self._ring.slots, first, end)
        return self._run.fill(self._maker, batch, first, rows, payload)

    @property
    def worker_pids(self) -> list[int]:
        return [process.pid for process in self._pool.processes] if self._pool is not None else []

    def next(self) -> tuple[Batch, Result, dict[str, Any]]:
        """The next batch, what happened while it was made, and the state after it.

        Where no image was tried (`Result.tried`) the feed is at its end.
        """
        if self._upload is None:
            number = self._next
            result = self._take(number, wait=True)
            assert result is not None
            rows = filled(self._ring.rows(number % self._ring.slots))
            batch = Batch({field.name: host_value(field, rows) for field in self._fields})
            self._free(number)
        else:
            batch, result = self._upload.next(self._take, self._free)
            number = self._next
        self._next = number + 1
        result.epoch = self._run.epoch_of(number, result.reported)
        return batch, result, self._run.after(number, result.reported)

    def _take(self, number: int, wait: bool) -> Result | None:
        """What is known of batch `number` once its slot is full; None, without `wait`, if it is not."""
        if self._pool is None:
            return self._make(number) if wait else None
        start = time.monotonic()
        while number not in self._results or self._results[number].chunks < self._chunks.count:
            messages = self._pool.messages(1.0 if wait else 0.0)
            for batch, message in messages:
                self._note(batch, message)
            if not wait and not messages:
                return None
            if time.monotonic() - start > _PATIENCE_SECONDS:
                logger.warning(
                    "waited %.0f s for data: is the storage slow, or one file very large?",
                    time.monotonic() - start,
                )
                start = time.monotonic()
        return self._results.pop(number)

    def _make(self, number: int) -> Result:
        """Makes a whole batch in this process."""
        for chunk in range(self._chunks.count):
            payload, reported = next(self._payloads) if self._payloads is not None else (None, None)
            outcome = self._fill(number, *self._chunks.rows(chunk), payload)
            for bad in outcome.bad:
                self._note(number, bad)
            self._note(number, Done(chunk, outcome.tried, len(outcome.bad), reported))
        return self._results.pop(number)

    def _note(self, number: int, message: Bad | Done) -> None:
        result = self._results.setdefault(number, Result())
        if isinstance(message, Bad):
            result.bad.append(message)
            return
        result.chunks += 1
        result.tried += message.tried
        result.bad_tries += message.bad
        if message.chunk == self._chunks.count - 1:
            result.reported = message.reported

    def _free(self, number: int) -> None:
        """The slot of batch `number` may be filled again."""
        if self._pool is not None:
            self._pool.order(number + self._ring.slots)

    def close(self) -> None:
        """Ends the processes."""
        if self._upload is not None:
            self._upload.close()
            self._upload = None
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if self._payloads is not None:
            self._payloads.close()
