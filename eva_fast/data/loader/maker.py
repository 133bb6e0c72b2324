"""Makes rows of a batch: read, decode, crop, mask; bad images are replaced by the next in order."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from eva_fast.data.decode.pillow import BadImage
from eva_fast.data.loader.order import Order
from eva_fast.data.samples.crop import Cropper
from eva_fast.data.samples.mask import BlockMasker
from eva_fast.data.samples.seeds import sample_seed, sample_seeds
from eva_fast.data.sources.base import Picture, Source
from eva_fast.errors import RunError

GIVE_UP_AFTER = 100  # bad images in a row


class Bad(NamedTuple):
    """An image that could not be read."""

    image_id: int
    name: str
    reason: str


@dataclass(slots=True)
class Outcome:
    """What happened while rows were made: images tried, and the bad ones among them."""

    tried: int = 0
    bad: list[Bad] = field(default_factory=list)


class Rows(NamedTuple):
    """Arrays to write rows of a batch into."""

    images: np.ndarray  # uint8 [n, 3, S, S]
    mask: np.ndarray  # int32 [n, K]
    ids: np.ndarray  # int64 [n]
    views: np.ndarray  # int64 [n]
    encoded: np.ndarray  # int32 [n, 6]: zeros, or what `Cropper.defer` says of a row


class Maker:
    """Turns encoded images into rows; the same rows whichever process it runs in.

    defers: leave JPEGs to the device where it can decode them (`eva_fast.data.decode.device`).
    """

    def __init__(self, cropper: Cropper, masker: BlockMasker, seed: int, defers: bool = False):
        self.cropper = cropper
        self.masker = masker
        self.seed = seed
        self.defers = defers

    def from_source(
        self, source: Source, order: Order, epoch: int, first: int, rows: Rows
    ) -> Outcome:
        """Fills `rows` with the samples at positions first, first + 1, ... of `epoch`.

        Where an image is bad the row gets the next good one in the epoch's order (which also
        stands in its own row): a rule that needs to know nothing about other rows.

        Raises RuntimeError after 100 bad images in a row.
        """
        outcome = Outcome()
        count = len(rows.ids)
        ids, views = order.samples(epoch, np.arange(first, first + count))
        for row in range(count):
            image_id, view, skipped = int(ids[row]), int(views[row]), 0
            while not self._crop(rows, row, image_id, view, source.read, source.name, outcome):
                skipped += 1
                if skipped >= min(GIVE_UP_AFTER, len(order)):
                    raise RunError(_none_readable(skipped, outcome))
                following = np.array([(first + row + skipped) % len(order)])
                image_id, view = (int(x[0]) for x in order.samples(epoch, following))
        self._masks(rows)
        return outcome

    def from_samples(self, samples: list[tuple[int, int, str, Any]], rows: Rows) -> Outcome:
        """Fills `rows` with `samples` (image id, view, name, data), which were read before.

        A bad image's row gets the next good one of the list, from the front again after its end.
        Raises RuntimeError where all of them are bad.
        """
        outcome = Outcome()
        count = len(samples)
        for row in range(count):
            for skipped in range(count):
                image_id, view, name, data = samples[(row + skipped) % count]
                read, say = partial(_given, data), partial(_given, name)
                if self._crop(rows, row, image_id, view, read, say, outcome):
                    break
            else:
                raise RunError(_none_readable(count, outcome))
        self._masks(rows)
        return outcome

    def _crop(
        self,
        rows: Rows,
        row: int,
        image_id: int,
        view: int,
        read: Callable[[int], Picture],
        name: Callable[[int], str],
        outcome: Outcome,
    ) -> bool:
        """Writes one image's crop; False, with a note in `outcome`, where it is bad."""
        outcome.tried += 1
        try:
            data, seed = read(image_id), sample_seed(self.seed, image_id, view)
            out = rows.images[row]
            deferred = self.cropper.defer(data, seed, out) if self.defers else None
            if deferred is None:
                self.cropper(data, seed, out=out)
        except BadImage as error:
            outcome.bad.append(Bad(image_id, name(image_id), error.reason))
            return False
        except Exception as error:  # whatever a file system or a dataset's own code raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            outcome.bad.append(Bad(image_id, name(image_id), reason))
            return False
        rows.ids[row], rows.views[row] = image_id, view
        rows.encoded[row] = deferred or 0
        return True

    def _masks(self, rows: Rows) -> None:
        rows.mask[:] = self.masker.indices(sample_seeds(self.seed, rows.ids, rows.views))


def _given(value: Any, _image_id: int) -> Any:
    """Stands for reading where `value` is at hand; an exception tells why it could not be read."""
    if isinstance(value, Exception):
        raise value
    return value


def _none_readable(count: int, outcome: Outcome) -> str:
    last = outcome.bad[-1]
    return (
        f"{count} images in a row could not be read; the last was {last.name}: {last.reason}. "
        "`eva-fast data check` lists what is wrong with a data set."
    )
