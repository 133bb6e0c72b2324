"""Several sources as one, with or without weights."""

import bisect
import itertools
from collections.abc import Sequence

import numpy as np

from eva_fast.data.sources.base import Item, Part, Picture, Source
from eva_fast.data.sources.left_out import summed
from eva_fast.errors import UsageError


class MixedSource(Source):
    """Several sources as one; image numbers follow on from each other.

    Without weights an epoch holds every image once. With weights an epoch has as many samples as
    the sources have images together, and each source supplies its share of them: a source that has
    more images than its share goes on in the next epoch, one that has fewer is repeated (in another
    view, that is another crop). A source that is a mix itself keeps its own weights within its share.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float] | None = None):
        if not sources:
            raise UsageError("a list of data sources must not be empty")
        if weights is not None and (min(weights) <= 0 or len(weights) != len(sources)):
            raise UsageError(f"every source of a mix needs a weight above 0, got {list(weights)}")
        self.sources = list(sources)
        self.weights = list(weights) if weights is not None else None
        self.knows_labels = all(source.knows_labels for source in sources)
        self.left_out = summed([source.left_out for source in sources])
        self.names = all_names(sources)
        self._ends = list(itertools.accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def _locate(self, number: int) -> tuple[Source, int]:
        which = bisect.bisect_right(self._ends, number)
        return self.sources[which], number - (self._ends[which - 1] if which else 0)

    def item(self, number: int) -> Item:
        source, inside = self._locate(number)
        return source.item(inside)

    def read(self, number: int) -> Picture:
        source, inside = self._locate(number)
        return source.read(inside)

    def name(self, number: int) -> str:
        source, inside = self._locate(number)
        return source.name(inside)

    def label(self, number: int) -> str | None:
        source, inside = self._locate(number)
        return source.label(inside)

    def parts(self) -> list[Part]:
        """Each source's share of an epoch, divided further where the source is a mix itself."""
        inner = [source.parts() for source in self.sources]
        weights = self.weights
        if weights is None:
            if all(part.draws == part.length for parts in inner for part in parts):
                return super().parts()
            weights = [float(len(source)) for source in self.sources]
        shares, starts, found = _divide(len(self), weights), [0, *self._ends[:-1]], []
        for start, share, parts in zip(starts, shares, inner):
            draws = _divide(share, [part.draws for part in parts])
            found += [Part(start + p.start, p.length, n) for p, n in zip(parts, draws)]
        return found


def all_names(sources: Sequence[Source]) -> list[str] | None:
    """The fingerprints of sources in their order; None where one has none."""
    each = [source.names for source in sources]
    return None if None in each else [name for names in each for name in names or ()]


def _divide(total: int, weights: Sequence[float]) -> list[int]:
    """`total` in whole numbers proportional to `weights`, that add up to it."""
    bounds = np.rint(np.cumsum([0.0, *weights]) / sum(weights) * total)
    return np.diff(bounds).astype(int).tolist()
