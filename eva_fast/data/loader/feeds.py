"""Where the samples of each batch come from: a feed is what the loader knows of a source's order."""

from typing import Any, Protocol

from eva_fast.data.loader.maker import Maker, Outcome
from eva_fast.data.loader.order import Order
from eva_fast.data.samples.fields import Rows
from eva_fast.data.sources.base import Part, Source
from eva_fast.errors import UsageError


class FeedRun(Protocol):
    """A feed from one state on; batches are numbered from 0."""

    def fill(self, maker: Maker, batch: int, first: int, rows: Rows, payload: Any) -> Outcome:
        """Makes the rows from number `first` of batch `batch`."""

    def after(self, batch: int, reported: Any) -> dict[str, Any]:
        """The state after `batch`; `reported` is what its last payload came with."""

    def epoch_of(self, batch: int, reported: Any) -> int:
        """The epoch `batch` begins in."""

    def reader(self) -> Any:
        """A callable on `Chunks` that yields (payload, what to report) a chunk, or None."""


class Feed(Protocol):
    """A sequence of batches for one rank: endless, or `once` through the source. The latter ends
    with a batch for which no image was tried, and leaves the rows of bad images empty."""

    once: bool
    batch_size: int
    batches_per_epoch: int
    samples_per_epoch: int  # of this rank

    def state(self) -> dict[str, Any]:
        """The state before the first batch."""

    def check(self, state: dict[str, Any]) -> None:
        """Raises ValueError where `state` belongs to another feed."""

    def start(self, state: dict[str, Any]) -> FeedRun:
        """The batches from `state` on."""


def check_same(state: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raises ValueError where a saved state was taken from other data, or with another seed."""
    for key, value in expected.items():
        if key == "names":
            _check_names(state.get(key), value)
        elif state.get(key) != value:
            raise UsageError(
                f"the saved data position has {key} {state.get(key)!r}, this run has {value!r}: "
                "it can only go on with the same data, weights and seed"
            )


def check_place(state: dict[str, Any], *names: str) -> None:
    """Raises ValueError where a saved state lacks one of these, or it is made of anything but counts."""
    for name in names:
        if name not in state or not _counts(state[name]):
            raise UsageError(f"the saved data position has no {name} that could be one")


def _counts(value: Any) -> bool:
    if isinstance(value, list | dict):
        return all(map(_counts, value.values() if isinstance(value, dict) else value))
    return type(value) is int and 0 <= value < 1 << 63


def _check_names(then: list[str] | None, now: list[str] | None) -> None:
    """Raises ValueError for as many images that are others; states of older versions have no names."""
    if then is not None and now is not None and then != now:
        raise UsageError(
            "the data holds other images than when the run began: as many, but under other names or "
            "in another order. Give the same data, or begin another run with another out="
        )


class MapFeed:
    """Samples of a source read by number, in the order of `Order`.

    Batch b of an epoch covers positions [b * G, (b + 1) * G) of it, G = batch_size * world, and
    rank r the r-th batch_size of them. What does not fill a global batch at an epoch's end is left
    out; the next epoch, in another order, leaves out others. A source smaller than a global batch
    is repeated within the batch, in other views.
    """

    once = False

    def __init__(self, source: Source, *, seed: int, batch_size: int, rank: int, world: int):
        self.source = source
        self.batch_size = batch_size
        self.rank = rank
        self.global_batch = batch_size * world
        parts = source.parts()
        draws = [part.draws for part in parts]  # differ where the weights do
        self._identity = {"kind": "map", "seed": seed, "images": len(source), "draws": draws}
        self._identity["names"] = source.names
        total = sum(draws)
        if total < self.global_batch:
            factor = -(-self.global_batch // total)
            parts = [Part(part.start, part.length, part.draws * factor) for part in parts]
        self.order = Order(parts, seed)
        self.batches_per_epoch = len(self.order) // self.global_batch
        self.samples_per_epoch = self.batches_per_epoch * batch_size

    def state(self) -> dict[str, Any]:
        return self.at(0, 0)

    def check(self, state: dict[str, Any]) -> None:
        check_same(state, self._identity)
        check_place(state, "epoch", "position")

    def start(self, state: dict[str, Any]) -> "MapRun":
        return MapRun(self, state["epoch"], state["position"])

    def at(self, epoch: int, position: int) -> dict[str, Any]:
        return {**self._identity, "epoch": epoch, "position": position}


class MapRun:
    """`MapFeed` from sample `position` (of the global order) of `epoch` on."""

    def __init__(self, feed: MapFeed, epoch: int, position: int):
        self.feed = feed
        self.epoch, self.position = epoch, position
        self._first = max(0, len(feed.order) - position) // feed.global_batch

    def _place(self, batch: int) -> tuple[int, int]:
        """(epoch, global position) at which batch number `batch` begins."""
        if batch < self._first:
            return self.epoch, self.position + batch * self.feed.global_batch
        later, inside = divmod(batch - self._first, self.feed.batches_per_epoch)
        return self.epoch + 1 + later, inside * self.feed.global_batch

    def fill(self, maker: Maker, batch: int, first: int, rows: Rows, payload: Any) -> Outcome:
        epoch, position = self._place(batch)
        position += self.feed.rank * self.feed.batch_size + first
        return maker.from_source(self.feed.source, self.feed.order, epoch, position, rows)

    def epoch_of(self, batch: int, reported: Any) -> int:
        return self._place(batch)[0]

    def after(self, batch: int, reported: Any) -> dict[str, Any]:
        epoch, position = self._place(batch)
        return self.feed.at(epoch, position + self.feed.global_batch)

    def reader(self) -> None:
        return None
