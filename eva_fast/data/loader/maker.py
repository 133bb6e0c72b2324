"""Makes rows of a batch out of items; bad images are replaced by the next in order, or left out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from eva_fast.data.decode.pillow import BadImage
from eva_fast.data.loader.order import Order
from eva_fast.data.loader.shardstream import Sample
from eva_fast.data.samples.fields import Field, Rows
from eva_fast.data.samples.seeds import sample_seed, sample_seeds
from eva_fast.data.sources.base import Item, Source
from eva_fast.errors import RunError

GIVE_UP_AFTER = 100  # bad images in a row
EMPTY = -1  # the id of a row that holds nothing


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


class Maker:
    """Turns items into rows of `fields`; the same rows whichever process it runs in."""

    def __init__(self, fields: Sequence[Field], seed: int):
        self.fields = list(fields)
        self.seed = seed
        self._of_items = [field for field in fields if not field.from_seeds]
        self._of_seeds = [field for field in fields if field.from_seeds]

    def from_source(
        self, source: Source, order: Order, epoch: int, first: int, rows: Rows
    ) -> Outcome:
        """Fills `rows` with the samples at positions first, first + 1, ... of `epoch`.

        Where an image is bad the row gets the next good one in the epoch's order (which also
        stands in its own row): a rule that needs to know nothing about other rows.

        Raises RuntimeError after 100 bad images in a row.
        """
        outcome = Outcome()
        count = len(rows)
        ids, views = order.samples(epoch, np.arange(first, first + count))
        for row in range(count):
            image_id, view, skipped = int(ids[row]), int(views[row]), 0
            while not self._row(rows, row, image_id, view, source.item, source.name, outcome):
                skipped += 1
                if skipped >= min(GIVE_UP_AFTER, len(order)):
                    raise RunError(_none_readable(skipped, outcome))
                following = np.array([(first + row + skipped) % len(order)])
                image_id, view = (int(x[0]) for x in order.samples(epoch, following))
        self._finish(rows)
        return outcome

    def from_samples(self, samples: Sequence[Sample], rows: Rows) -> Outcome:
        """Fills `rows` with samples that were read before.

        A bad image's row gets the next good one of the list, from the front again after its end.
        Raises RuntimeError where all of them are bad.
        """
        outcome = Outcome()
        count = len(samples)
        for row in range(count):
            for skipped in range(count):
                if self._sample(rows, row, samples[(row + skipped) % count], outcome):
                    break
            else:
                raise RunError(_none_readable(count, outcome))
        self._finish(rows)
        return outcome

    def once_from_source(self, source: Source, numbers: range, rows: Rows) -> Outcome:
        """Fills `rows` with the images `numbers`, at most as many; bad ones leave their row empty."""
        outcome = Outcome()
        rows["ids"][:] = EMPTY
        for row, number in enumerate(numbers):
            self._row(rows, row, number, 0, source.item, source.name, outcome)
        self._finish(rows)
        return outcome

    def once_from_samples(self, samples: Sequence[Sample], rows: Rows) -> Outcome:
        """The same with samples that were read before."""
        outcome = Outcome()
        rows["ids"][:] = EMPTY
        for row, sample in enumerate(samples):
            self._sample(rows, row, sample, outcome)
        self._finish(rows)
        return outcome

    def _sample(self, rows: Rows, row: int, sample: Sample, outcome: Outcome) -> bool:
        image_id, view, name, item = sample
        get, say = partial(_given, item), partial(_given, name)
        return self._row(rows, row, image_id, view, get, say, outcome)

    def _row(
        self,
        rows: Rows,
        row: int,
        image_id: int,
        view: int,
        get: Callable[[int], Item],
        name: Callable[[int], str],
        outcome: Outcome,
    ) -> bool:
        """Writes one image's row; False, with a note in `outcome`, where it is bad."""
        outcome.tried += 1
        try:
            item, seed = get(image_id), sample_seed(self.seed, image_id, view)
            for part in self._of_items:
                part.write(item, seed, rows, row)
        except BadImage as error:
            outcome.bad.append(Bad(image_id, name(image_id), error.reason))
            return False
        except Exception as error:  # whatever a file system or a dataset's own code raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            outcome.bad.append(Bad(image_id, name(image_id), reason))
            return False
        rows["ids"][row], rows["views"][row] = image_id, view
        return True

    def _finish(self, rows: Rows) -> None:
        if self._of_seeds:
            seeds = sample_seeds(self.seed, rows["ids"], rows["views"])
            for part in self._of_seeds:
                part.make_rows(seeds, rows[part.name])


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
