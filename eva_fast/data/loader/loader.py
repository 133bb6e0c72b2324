"""The resumable loader: batches of crops and masks, epoch after epoch, in an order of its own.

The order is a function of (seed, epoch) over the global batch; the workers, their number and their
speed change nothing in it.
"""

import os
import time
import weakref
from typing import Any

import torch

from eva_fast.data.decode.device import DeviceDecoder
from eva_fast.data.loader.bad_images import BadImages
from eva_fast.data.loader.engine import Batch, Engine
from eva_fast.data.loader.feeds import Feed, MapFeed
from eva_fast.data.loader.maker import Maker
from eva_fast.data.loader.streamfeed import StreamFeed, has_stream
from eva_fast.data.samples.crop import Cropper
from eva_fast.data.samples.mask import BlockMasker
from eva_fast.data.sources.base import Source
from eva_fast.errors import UsageError


def build_loader(
    source: Source,
    *,
    batch_size: int,
    image_size: int = 224,
    patch_size: int = 14,
    mask_ratio: float | None = None,
    mask_count: int | None = None,
    seed: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    min_block: int = 16,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    bad_images: str | os.PathLike | None = None,
    max_bad_fraction: float = 0.05,
    device: str | torch.device | None = None,
    decode: str = "cpu",
) -> "Loader":
    """A loader of training samples: one crop an image, flipped by chance, and a block-wise mask.

    Arguments:
        source: from `open_source`.
        batch_size: images a batch on this rank; the global batch is `batch_size * world`.
        image_size, patch_size: side of the crop and of a patch, in pixels.
        mask_ratio, mask_count: share or number of masked patches an image; one of them.
        seed: of order, crops, flips and masks.
        workers: processes that read and decode; 0 does it in this process.
        rank, world: which part of the global batch this process takes.
        min_block: smallest block of the mask, in patches.
        scale, ratio, flip: of the random resized crop, as torchvision names them.
        bad_images: JSON-lines file for images that cannot be read; None only counts them.
        max_bad_fraction: a higher share of unreadable images stops the run.
        device: where the batches go; to a GPU they are copied beside the running step.
        decode: "cpu", in the workers, or "gpu", JPEGs through nvJPEG on `device`.

    Raises ValueError for settings that do not fit together.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}")
    if workers < 0:
        raise UsageError(f"workers must be 0 or more, got {workers}")
    if not 0 <= rank < world:
        raise UsageError(f"rank must be between 0 and world - 1, got rank {rank} of {world}")
    if image_size < 1 or patch_size < 1 or image_size % patch_size:
        raise UsageError(
            f"image_size {image_size} must be a multiple of patch_size {patch_size}: "
            f"{max(1, round(image_size / max(1, patch_size))) * patch_size} would be"
        )
    side = image_size // patch_size
    if (mask_ratio is None) == (mask_count is None):
        raise UsageError("give one of mask_ratio and mask_count")
    if mask_count is None:
        assert mask_ratio is not None
        if not 0 < mask_ratio <= 1:
            raise UsageError(f"mask_ratio must be above 0 and at most 1, got {mask_ratio}")
        mask_count = max(1, round(mask_ratio * side * side))
    cropper = Cropper(image_size, scale, ratio, flip)
    device = torch.device(device if device is not None else "cpu")
    if decode not in ("cpu", "gpu"):
        raise UsageError(f'decode must be "cpu" or "gpu", got {decode!r}')
    if decode == "gpu" and device.type != "cuda":
        raise UsageError(f'decode="gpu" needs an NVIDIA GPU, and the batches go to {device}')
    decoder = DeviceDecoder(device, image_size) if decode == "gpu" else None
    masker = BlockMasker((side, side), mask_count, min_block)
    maker = Maker(cropper, masker, seed, defers=decoder is not None)
    kind = StreamFeed if has_stream(source) else MapFeed
    feed: Feed = kind(source, seed=seed, batch_size=batch_size, rank=rank, world=world)
    record = BadImages(bad_images, max_bad_fraction, feed.samples_per_epoch)
    return Loader(feed, maker, record, workers=workers, device=device, decoder=decoder)


class Loader:
    """Yields `Batch` forever. Close it, or use it in a `with` block, to end its workers.

    Attributes:
        batches_per_epoch: batches a rank gets from one epoch.
        wait_seconds: total time the caller has waited for data.
        bad_count: different unreadable images met so far.
    """

    def __init__(
        self,
        feed: Feed,
        maker: Maker,
        record: BadImages,
        *,
        workers: int,
        device: torch.device,
        decoder: DeviceDecoder | None = None,
    ):
        self.feed = feed
        self.maker = maker
        self.workers = workers
        self.device = device
        self.wait_seconds = 0.0
        self._decoder = decoder
        self._record = record
        self._state = feed.state()
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
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        if self._engine is None:
            self._engine = Engine(
                self.feed, self.maker, self.workers, self.device, self._state, self._decoder
            )
            self._finalizer = weakref.finalize(self, Engine.close, self._engine)
        try:
            batch, result, state = self._engine.next()
            for bad in sorted(result.bad):
                self._record.record(*bad)
            self._record.add(result.epoch, result.tried, result.bad_tries)
        except BaseException:
            self.close()
            raise
        self._state = state
        self.wait_seconds += time.perf_counter() - start
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the last batch handed out; plain numbers and strings.

        It fits any number of workers. For sources read by number it is the position in the global
        order, the same on every rank and good for any number of ranks; for streams it is this
        rank's own, and each rank must save and load its own.
        """
        tally = self._record
        return {
            "feed": dict(self._state),
            "tally": {"epoch": tally.epoch, "tried": tally.tried, "bad": tally.bad},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues behind the batch after which `state` was taken.

        Raises ValueError where the state belongs to other data or another seed.
        """
        self.feed.check(state["feed"])
        self.close()
        self._state = dict(state["feed"])
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
