"""Each image of a source once, then the end: for evaluation and for checking a data set."""

import contextlib
import itertools
from collections.abc import Generator
from typing import Any

from eva_fast.data.loader.feeds import check_same
from eva_fast.data.loader.maker import Maker, Outcome
from eva_fast.data.loader.shardstream import Sample, ShardStream
from eva_fast.data.loader.streamfeed import flat, read_sample
from eva_fast.data.loader.workers import Chunks
from eva_fast.data.samples.fields import Rows
from eva_fast.data.sources.base import Source
from eva_fast.data.sources.streams import StreamSource


class OnceFeed:
    """The images of a source in the order of their numbers, without replacements for bad ones.

    Batch b covers images [b * G, (b + 1) * G), G = batch_size * world, and rank r the r-th
    batch_size of them; the last batches are short or empty.
    """

    once = True

    def __init__(self, source: Source, *, seed: int, batch_size: int, rank: int, world: int,
                 limit: int | None = None):  # fmt: skip
        self.source = source
        self.batch_size = batch_size
        self.rank = rank
        self.global_batch = batch_size * world
        self.count = len(source) if limit is None else min(limit, len(source))
        self._identity = {"kind": "once", "seed": seed, "images": self.count}
        self.batches_per_epoch = -(-self.count // self.global_batch)
        whole = self.count // self.global_batch
        self.samples_per_epoch = whole * batch_size + len(self.numbers(whole * self.global_batch))

    def numbers(self, position: int) -> range:
        """The images of this rank in the global batch that begins at `position`."""
        first = position + self.rank * self.batch_size
        return range(min(first, self.count), min(first + self.batch_size, self.count))

    def state(self) -> dict[str, Any]:
        return self.at(0)

    def check(self, state: dict[str, Any]) -> None:
        check_same(state, self._identity)

    def start(self, state: dict[str, Any]) -> "OnceRun":
        return OnceRun(self, state["position"])

    def at(self, position: int) -> dict[str, Any]:
        return {**self._identity, "position": position}


class OnceRun:
    """`OnceFeed` from image `position` on."""

    def __init__(self, feed: OnceFeed, position: int):
        self.feed = feed
        self.position = position

    def _place(self, batch: int) -> int:
        return self.position + batch * self.feed.global_batch

    def fill(self, maker: Maker, batch: int, first: int, rows: Rows, payload: Any) -> Outcome:
        numbers = self.feed.numbers(self._place(batch))[first : first + len(rows)]
        return maker.once_from_source(self.feed.source, numbers, rows)

    def epoch_of(self, batch: int, reported: Any) -> int:
        return 0

    def after(self, batch: int, reported: Any) -> dict[str, Any]:
        return self.feed.at(self._place(batch + 1))

    def reader(self) -> None:
        return None


class OnceStreamFeed:
    """The images of streams, and of sources mixed with them, one source after the other.

    A stream's images come as they are read and shuffled; `limit` counts for each source.
    """

    once = True

    def __init__(self, source: Source, *, seed: int, batch_size: int, rank: int, world: int,
                 limit: int | None = None):  # fmt: skip
        self.sources = flat(source)
        self.seed, self.rank, self.world, self.limit = seed, rank, world, limit
        self.batch_size = batch_size
        self.samples_per_epoch = len(source) // world  # an estimate, as the streams' lengths are
        self.batches_per_epoch = -(-self.samples_per_epoch // batch_size)

    def _identity(self) -> dict[str, Any]:
        shards = [len(s.shards) if isinstance(s, StreamSource) else len(s) for s in self.sources]
        return {
            "kind": "stream once", "seed": self.seed, "sources": shards, "limit": self.limit,
            "rank": self.rank, "world": self.world,
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        return self.at(0)

    def at(self, samples: int) -> dict[str, Any]:
        return {**self._identity(), "samples": samples}

    def check(self, state: dict[str, Any]) -> None:
        check_same(state, self._identity())

    def start(self, state: dict[str, Any]) -> "OnceStreamRun":
        return OnceStreamRun(self, state["samples"])

    def samples(self) -> Generator[Sample, None, None]:
        """This rank's images from the first on."""
        for number, source in enumerate(self.sources):
            if isinstance(source, StreamSource):
                stream = ShardStream(source, self.seed, self.rank, self.world, number, epochs=1)
                with contextlib.closing(iter(stream)) as running:
                    yield from itertools.islice(running, self.limit)
            else:
                count = len(source) if self.limit is None else min(self.limit, len(source))
                for image_id in range(self.rank, count, self.world):
                    yield read_sample(source, number, image_id, 0)


class OnceStreamRun:
    """`OnceStreamFeed` behind the first `samples`."""

    def __init__(self, feed: OnceStreamFeed, samples: int):
        self.feed = feed
        self._done = samples

    def fill(self, maker: Maker, batch: int, first: int, rows: Rows, payload: Any) -> Outcome:
        return maker.once_from_samples(payload, rows)

    def epoch_of(self, batch: int, reported: Any) -> int:
        return 0

    def after(self, batch: int, reported: Any) -> dict[str, Any]:
        return reported

    def reader(self) -> Any:
        return self._read

    def _read(self, chunks: Chunks) -> Generator[tuple[list[Sample], dict[str, Any]], None, None]:
        """The samples of one chunk after the other, none behind the end."""
        done = self._done
        with contextlib.closing(self.feed.samples()) as running:
            remaining = itertools.islice(running, done, None)
            while True:
                for chunk in range(chunks.count):
                    first, end = chunks.rows(chunk)
                    payload = list(itertools.islice(remaining, end - first))
                    done += len(payload)
                    yield payload, self.feed.at(done)
