"""The resumable loader: batches of named fields, in an order of its own.

The order is a function of (seed, epoch) over the global batch; the workers, their number and their
speed change nothing in it.
"""

import os
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from eva_fast.data.loader.bad_images import BadImages
from eva_fast.data.loader.batch import Batch, check_names
from eva_fast.data.loader.engine import Engine
from eva_fast.data.loader.feeds import Feed, MapFeed
from eva_fast.data.loader.maker import Bad, Maker
from eva_fast.data.loader.once import OnceFeed, OnceStreamFeed
from eva_fast.data.loader.streamfeed import StreamFeed, has_stream
from eva_fast.data.loader.workers import check_count
from eva_fast.data.samples.fields import IDS, VIEWS, Field
from eva_fast.data.samples.masked_image import masked_image_fields
from eva_fast.data.sources.base import Source
from eva_fast.data.sources.fingerprint import contents
from eva_fast.errors import UsageError

ORDERS = ("shuffled", "once")


def build_loader(
    source: Source,
    fields: Sequence[Field] | None = None,
    *,
    batch_size: int,
    seed: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    order: str = "shuffled",
    limit: int | None = None,
    bad_images: str | os.PathLike | None = None,
    on_bad: Callable[[Bad], None] | None = None,
    max_bad_fraction: float = 0.05,
    device: str | torch.device | None = None,
    decode: str = "cpu",
    **masked_image: Any,
) -> "Loader":
    """A loader of samples, for training, for evaluation and for checking a data set.

    Arguments:
        source: from `open_source`.
        fields: what a sample is made of. Without it `masked_image_fields(...)` of the remaining
            keywords (`image_size`, `patch_size`, `mask_ratio`, ...): `images` and `mask`.
        batch_size: images a batch on this rank; the global batch is `batch_size * world`.
        seed: of order, crops, flips and masks.
        workers: processes that read and decode; 0 does it in this process.
        rank, world: which part of the global batch this process takes.
        order: "shuffled", epoch after epoch without end, each in another order, an image that cannot
            be read being replaced by the next; or "once": each image once, by its number, then the
            end. The last batch is then short, and images that cannot be read are left out.
        limit: with order="once", only so many images; of streams, so many of each source.
        bad_images: JSON-lines file for images that cannot be read; None only counts them.
        on_bad: called, in this process, with each `Bad` (image id, name, reason) that is met.
        max_bad_fraction: a higher share of unreadable images stops the run.
        device: where the batches go; to a GPU they are copied beside the running step.
        decode: "cpu", in the workers, or "gpu", JPEGs through nvJPEG on `device`.

    Raises ValueError for settings that do not fit together.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}")
    check_count(workers)
    if not 0 <= rank < world:
        raise UsageError(f"rank must be between 0 and world - 1, got rank {rank} of {world}")
    if order not in ORDERS:
        raise UsageError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if limit is not None and (order != "once" or limit < 1):
        raise UsageError(f'limit must be at least 1, and needs order="once"; got {limit}')
    if fields is None:
        fields = masked_image_fields(**masked_image)
    elif masked_image:
        raise UsageError(f"with fields= there is no use for {', '.join(masked_image)}")
    device = torch.device(device if device is not None else "cpu")
    if decode not in ("cpu", "gpu"):
        raise UsageError(f'decode must be "cpu" or "gpu", got {decode!r}')
    if decode == "gpu":
        if device.type != "cuda":
            raise UsageError(f'decode="gpu" needs an NVIDIA GPU, and the batches go to {device}')
        fields = [field.decoded_on(device) for field in fields]
    check_names([*fields, IDS, VIEWS])
    place: dict[str, Any] = dict(seed=seed, batch_size=batch_size, rank=rank, world=world)
    feed: Feed
    if order == "once":
        feed = (OnceStreamFeed if has_stream(source) else OnceFeed)(source, limit=limit, **place)
    else:
        feed = (StreamFeed if has_stream(source) else MapFeed)(source, **place)
    record = BadImages(bad_images, max_bad_fraction, feed.samples_per_epoch)
    return Loader(
        source, feed, Maker(fields, seed), record, workers=workers, device=device, on_bad=on_bad
    )


class Loader:
    """Yields `Batch`, forever or, with order="once", to the end of the source; iterating again then
    begins anew. Close it, or use it in a `with` block, to end its workers.

    Attributes:
        batches_per_epoch: batches a rank gets from one epoch.
        wait_seconds: total time the caller has waited for data.
        bad_count: different unreadable images met so far.
    """

    def __init__(
        self,
        source: Source,
        feed: Feed,
        maker: Maker,
        record: BadImages,
        *,
        workers: int,
        device: torch.device,
        on_bad: Callable[[Bad], None] | None = None,
    ):
        self.source = source
        self.feed = feed
        self.maker = maker
        self.workers = workers
        self.device = device
        self.wait_seconds = 0.0
        self._record = record
        self._on_bad = on_bad
        self._ended = False
        self._state = feed.state()
        self._contents: dict[str, str] | None = None
        self._engine: Engine | None = None
        self._finalizer: Any = None

    @property
    def batches_per_epoch(self) -> int:
        return self.feed.batches_per_epoch

    @property
    def bad_count(self) -> int:
        return self._record.count

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the running workers, and of the process that reads streams for them."""
        return self._engine.worker_pids if self._engine is not None else []

    def __iter__(self) -> "Loader":
        if self._ended:
            self._state, self._ended = self.feed.state(), False
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        while not self._ended:
            batch = self._advance()
            if len(batch):
                self.wait_seconds += time.perf_counter() - start
                return batch
        raise StopIteration

    def _advance(self) -> Batch:
        """The next batch, without rows where none of its images could be read, or at the end."""
        if self._engine is None:
            self._engine = Engine(self.feed, self.maker, self.workers, self.device, self._state)
            self._finalizer = weakref.finalize(self, Engine.close, self._engine)
        try:
            batch, result, state = self._engine.next()
            for bad in sorted(result.bad):
                self._record.record(*bad)
                if self._on_bad is not None:
                    self._on_bad(bad)
            if result.tried:
                self._record.add(result.epoch, result.tried, result.bad_tries)
        except BaseException:
            self.close()
            raise
        self._state = state
        if not result.tried:
            self._ended = True
            self.close()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the last batch handed out; plain numbers and strings.

        It fits any number of workers. For sources read by number it is the position in the global
        order, the same on every rank and good for any number of ranks; for streams it is this
        rank's own, and each rank must save and load its own. `contents` are the digests of some
        images (`eva_fast.data.sources.fingerprint`), which the first call reads.
        """
        tally = self._record
        if self._contents is None:
            self._contents = contents(self.source)
        return {
            "feed": dict(self._state),
            "tally": {"epoch": tally.epoch, "tried": tally.tried, "bad": tally.bad},
            "contents": self._contents,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues behind the batch after which `state` was taken.

        Raises ValueError where the state belongs to other data or another seed.
        """
        self.feed.check(state["feed"])
        self.close()
        self._ended = False
        self._state = dict(state["feed"])
        self._contents = state.get("contents")
        tally = state["tally"]
        self._record.epoch, self._record.tried = tally["epoch"], tally["tried"]
        self._record.bad = tally["bad"]

    def close(self) -> None:
        """Ends the workers. Iterating again goes on behind the last batch handed out."""
        if self._finalizer is not None:
            self._finalizer()
        self._engine = self._finalizer = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
