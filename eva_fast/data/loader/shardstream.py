"""The order in which a rank reads shards that are streams.

A rank reads several shards at a time (its lanes), takes one image of each in turn and shuffles
windows of that sequence. All of it is a function of (seed, epoch, rank, world) and the data, so a
position is a handful of numbers, and resuming re-reads at most the shards that were open.
"""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np

from eva_fast.data.loader.order import permute
from eva_fast.data.samples.seeds import mix64
from eva_fast.data.sources.base import Item
from eva_fast.data.sources.streams import StreamSource, read_shard
from eva_fast.data.sources.tar import member_label

LANES = 4  # shards a rank reads at a time
_AHEAD = 32  # images a lane reads ahead


class Sample(NamedTuple):
    """An image that has been read. `item` is an exception where reading failed."""

    image_id: int
    view: int
    name: str
    item: Item | Exception


class ShardStream:
    """One rank's sequence of the images of a `StreamSource`, from a state on; endless, unless a
    number of `epochs` is given.

    Every epoch has its own order of shards. Where there are at least as many shards as ranks, a
    rank reads every world-th shard; else every rank reads all shards and takes every world-th
    image. Within an epoch a rank sees each of its images once. `number` tells the sources of a mix
    apart.
    """

    def __init__(
        self,
        source: StreamSource,
        seed: int,
        rank: int,
        world: int,
        number: int = 0,
        state: dict[str, Any] | None = None,
        epochs: int | None = None,
    ):
        self.source = source
        self.epochs = epochs
        self.rank, self.world, self.number = rank, world, number
        self.key = mix64(mix64(seed) ^ mix64(number))
        self.state = state or {"epoch": 0, **_start_of_epoch(), "offset": 0}

    def __iter__(self) -> Generator[Sample, None, None]:
        """Yields samples; `state` is then the position behind the last one yielded."""
        state = self.state
        epoch, window, turn, places = (state[k] for k in ("epoch", "window", "turn", "places"))
        first = state["offset"]
        while self.epochs is None or epoch < self.epochs:
            lanes = _Lanes(self, epoch, turn, places)
            with contextlib.closing(lanes):
                start, samples = lanes.position(), lanes.take(self.source.window)
                while samples:
                    following = lanes.position()
                    ahead: list[Sample] = []
                    key = mix64(self.key ^ mix64(mix64(epoch) + self.rank + 1)) ^ window
                    order = permute(len(samples), key, np.arange(len(samples)))
                    for offset in range(first, len(order)):
                        sample = samples[order[offset]]
                        samples[order[offset]] = None  # type: ignore[call-overload]  # frees it
                        # the next window fills while this one empties: no stop between them
                        ahead += lanes.take(1 if len(ahead) < self.source.window else 0)
                        self.state = {
                            "epoch": epoch, "window": window, **start, "offset": offset + 1,
                        }  # fmt: skip
                        yield sample
                    ahead += lanes.take(self.source.window - len(ahead))
                    start, samples, window, first = following, ahead, window + 1, 0
            epoch, window, first = epoch + 1, 0, 0
            turn, places = 0, _start_of_epoch()["places"]

    def lane(self, epoch: int, lane: int, place: list[int]) -> Iterator[tuple[list[int], Sample]]:
        """(place behind it, sample) for the rest of a lane's epoch."""
        count = len(self.source.shards)
        order = permute(count, mix64(self.key ^ mix64(epoch)), np.arange(count))
        if count >= self.world:
            mine, part, parts = order[self.rank :: self.world], 0, 1
        else:
            mine, part, parts = order, self.rank, self.world
        mine = mine[lane::LANES]
        begin, skip = place
        for turn in range(begin, len(mine)):
            shard = int(mine[turn])
            for number, name, data in read_shard(self.source.shards[shard], skip, part, parts):
                image_id = (self.number << 48) | (shard << 24) | number
                label = member_label(name.removeprefix(f"{self.source.shards[shard]}/"))
                item = Item(image=data, label=label)
                yield [turn, number + 1], Sample(image_id, epoch, name, item)
            skip = 0


def _start_of_epoch() -> dict[str, Any]:
    return {"window": 0, "turn": 0, "places": [[0, 0] for _ in range(LANES)]}


class _Lanes:
    """Takes samples from the lanes of an epoch in turn; a lane that ends is left out."""

    def __init__(self, stream: ShardStream, epoch: int, turn: int, places: list[list[int]]):
        self._turn = turn
        self._places = [list(place) for place in places]
        self._open = [
            Ahead(stream.lane(epoch, lane, place)) for lane, place in enumerate(self._places)
        ]
        self._left = set(range(len(places)))

    def position(self) -> dict[str, Any]:
        return {"turn": self._turn, "places": [list(place) for place in self._places]}

    def take(self, count: int) -> list[Sample]:
        """The next `count` samples, fewer at the epoch's end."""
        taken: list[Sample] = []
        while len(taken) < count and self._left:
            lane = self._turn
            self._turn = (lane + 1) % len(self._places)
            if lane not in self._left:
                continue
            item = self._open[lane].get()
            if item is None:
                self._left.discard(lane)
                self._places[lane] = [1 << 40, 0]  # behind every shard
            else:
                self._places[lane], sample = item
                taken.append(sample)
        return taken

    def close(self) -> None:
        for lane in self._open:
            lane.close()


class Ahead:
    """Runs an iterator in a thread, some items ahead."""

    def __init__(self, items: Iterator[Any]):
        self._queue: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._ended = False
        threading.Thread(target=self._run, args=(items,), daemon=True).start()

    def _run(self, items: Iterator[Any]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
            self._put(None)
        except BaseException as error:  # handed to whoever takes the next item
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.2)
                return True
        return False

    def get(self) -> Any:
        """The next item; None after the last. Raises what the iterator raised."""
        item = None if self._ended else self._queue.get()
        if isinstance(item, BaseException):
            raise item
        self._ended = item is None
        return item

    def close(self) -> None:
        self._stop.set()
