"""Feeds the loader from streams, and from mixes of streams with other sources."""

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from eva_fast.data.loader.feeds import check_place, check_same
from eva_fast.data.loader.maker import Maker, Outcome
from eva_fast.data.loader.order import Order
from eva_fast.data.loader.shardstream import Sample, ShardStream
from eva_fast.data.loader.workers import Chunks
from eva_fast.data.samples.fields import Rows
from eva_fast.data.sources.base import Item, Source
from eva_fast.data.sources.mixed import MixedSource, all_names
from eva_fast.data.sources.streams import StreamSource
from eva_fast.errors import UsageError

_AT_ONCE = 64


class MapStream:
    """One rank's endless sequence of a source read by number, for a mix with streams."""

    def __init__(
        self, source: Source, seed: int, rank: int, world: int, number: int, state: dict[str, Any]
    ):
        self.source = source
        self.order = Order(source.parts(), seed)
        self.rank, self.world, self.number = rank, world, number
        self.state = state or {"taken": 0}

    def __iter__(self) -> Iterator[Sample]:
        taken = self.state["taken"]
        while True:
            draws = (taken + np.arange(_AT_ONCE)) * self.world + self.rank
            epochs, positions = np.divmod(draws, len(self.order))
            for epoch in np.unique(epochs):
                ids, views = self.order.samples(int(epoch), positions[epochs == epoch])
                for image_id, view in zip(ids.tolist(), views.tolist()):
                    taken += 1
                    self.state = {"taken": taken}
                    yield read_sample(self.source, self.number, image_id, view)


def read_sample(source: Source, number: int, image_id: int, view: int) -> Sample:
    """An image of source `number` of a mix with streams."""
    try:
        item: Item | Exception = source.item(image_id)
    except Exception as error:  # a bad image: told where it is decoded
        item = OSError(f"{type(error).__name__}: {error}")
    return Sample((number << 48) | image_id, view, source.name(image_id), item)


class Mix:
    """Interleaves sequences by weight: each time the one furthest behind its share."""

    def __init__(self, strands: list[Any], weights: list[float], taken: list[int]):
        self.strands = strands
        self.weights = np.array(weights) / sum(weights)
        self.taken = np.array(taken)

    def __iter__(self) -> Generator[Sample, None, None]:
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(contextlib.closing(iter(s))) for s in self.strands]
            while True:
                behind = self.weights * (self.taken.sum() + 1) - self.taken
                chosen = int(behind.argmax())
                self.taken[chosen] += 1
                yield next(running[chosen])


class StreamFeed:
    """Samples of streams in the order they are read and shuffled; each rank has its own position.

    Epochs are counted by the sources' estimated length; the streams themselves go on from one pass
    over their shards to the next without a stop.
    """

    once = False

    def __init__(self, source: Source, *, seed: int, batch_size: int, rank: int, world: int):
        self.sources = flat(source)
        given = source.weights if isinstance(source, MixedSource) else None
        self.weights = given or [float(len(s)) for s in self.sources]
        self.seed, self.rank, self.world = seed, rank, world
        self.batch_size = batch_size
        self.batches_per_epoch = max(1, len(source) // (batch_size * world))
        self.samples_per_epoch = self.batches_per_epoch * batch_size

    def _identity(self) -> dict[str, Any]:
        shards = [len(s.shards) if isinstance(s, StreamSource) else len(s) for s in self.sources]
        return {
            "kind": "stream", "seed": self.seed, "sources": shards, "weights": self.weights,
            "rank": self.rank, "world": self.world, "names": all_names(self.sources),
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        count = len(self.sources)
        return {**self._identity(), "samples": 0, "taken": [0] * count, "strands": [None] * count}

    def check(self, state: dict[str, Any]) -> None:
        check_same(state, self._identity())
        check_place(state, "samples", "taken", "strands")

    def start(self, state: dict[str, Any]) -> "StreamRun":
        return StreamRun(self, state)

    def sequence(self, state: dict[str, Any]) -> Mix:
        strands: list[Any] = []
        for number, (source, where) in enumerate(zip(self.sources, state["strands"])):
            kind: Any = ShardStream if isinstance(source, StreamSource) else MapStream
            strands.append(kind(source, self.seed, self.rank, self.world, number, where))
        return Mix(strands, self.weights, state["taken"])

    def after(self, sequence: Mix, samples: int) -> dict[str, Any]:
        return {
            **self._identity(),
            "samples": samples,
            "taken": sequence.taken.tolist(),
            "strands": [strand.state for strand in sequence.strands],
        }


class StreamRun:
    """`StreamFeed` from a state on. Samples are read in one process and decoded in the workers."""

    def __init__(self, feed: StreamFeed, state: dict[str, Any]):
        self.feed = feed
        self._state = state

    def fill(self, maker: Maker, batch: int, first: int, rows: Rows, payload: Any) -> Outcome:
        return maker.from_samples(payload, rows)

    def epoch_of(self, batch: int, reported: Any) -> int:
        return (reported["samples"] - self.feed.batch_size) // self.feed.samples_per_epoch

    def after(self, batch: int, reported: Any) -> dict[str, Any]:
        return reported

    def reader(self) -> Any:
        return self._read

    def _read(self, chunks: Chunks) -> Iterator[tuple[list[Sample], dict[str, Any] | None]]:
        """The samples of one chunk after the other, with the state where a batch ends."""
        sequence = self.feed.sequence(self._state)
        samples = self._state["samples"]
        with contextlib.closing(iter(sequence)) as running:
            while True:
                for chunk in range(chunks.count):
                    first, end = chunks.rows(chunk)
                    payload = [next(running) for _ in range(end - first)]
                    samples += len(payload)
                    last = chunk == chunks.count - 1
                    yield payload, self.feed.after(sequence, samples) if last else None


def flat(source: Source) -> list[Source]:
    """The sources of a mix that holds streams. Raises ValueError for such a mix within a mix."""
    sources = source.sources if isinstance(source, MixedSource) else [source]
    if any(isinstance(inner, MixedSource) and has_stream(inner) for inner in sources):
        raise UsageError("a mix that holds streams cannot be part of another mix: list them all")
    return sources


def has_stream(source: Source) -> bool:
    """Whether a source holds images that cannot be read by number."""
    if isinstance(source, MixedSource):
        return any(map(has_stream, source.sources))
    return isinstance(source, StreamSource)
