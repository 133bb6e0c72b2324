"""A source some of whose images were deleted since a run began, with the numbers it had then."""

import bisect
import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from eva_fast.data.sources.base import Item, Source
from eva_fast.data.sources.fingerprint import completes, count_of
from eva_fast.data.sources.folder import FileSource
from eva_fast.data.sources.list import PathSource
from eva_fast.data.sources.mixed import MixedSource


class RestoredSource(Source):
    """`source`, in which the images `gone` ({number then: path then}) still have their numbers and
    can no longer be read."""

    def __init__(self, source: Source, gone: Mapping[int, str], names: list[str]):
        self.source = source
        self.gone = dict(gone)
        self.names = names
        self.knows_labels = source.knows_labels
        self.left_out = source.left_out
        self._sorted = sorted(gone)

    def __len__(self) -> int:
        return len(self.source) + len(self.gone)

    def _now(self, number: int) -> int:
        """The number that image `number` has by now."""
        if number in self.gone:
            path = self.gone[number]
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return number - bisect.bisect_left(self._sorted, number)

    def item(self, number: int) -> Item:
        return self.source.item(self._now(number))

    def name(self, number: int) -> str:
        return self.gone[number] if number in self.gone else self.source.name(self._now(number))

    def label(self, number: int) -> str | None:
        return None if number in self.gone else self.source.label(self._now(number))

    def classes(self) -> list[str]:
        return self.source.classes()


def restored(source: Source, names: Sequence[str], bad_images: Path) -> Source:
    """`source` as it was when its `names` were these, where all that is missing since then are images
    that `bad_images` has on record; else `source`."""
    if source.names is None or len(source.names) != len(names) or source.names == list(names):
        return source
    return _restored(source, list(names), 0, _recorded(bad_images))


def _restored(source: Source, names: list[str], start: int, bad: dict[int, str]) -> Source:
    """The same for a part of a mix, whose numbers began at `start`."""
    if isinstance(source, MixedSource):
        parts = []
        for part in source.sources:
            own = [names.pop(0) for _ in part.names or ()]
            parts.append(_restored(part, list(own), start, bad))
            start += sum(map(count_of, own))
        return MixedSource(parts, source.weights)
    assert source.names is not None
    (then,), (now,) = names, source.names
    if now == then or not isinstance(source, FileSource | PathSource):
        return source
    end = start + count_of(then)
    gone = {
        number - start: path
        for number, path in bad.items()
        if start <= number < end and not os.path.exists(path)
    }
    if not gone:
        return source
    within = f"{source.root}{os.sep}"
    for keys in ([path.removeprefix(within) for path in gone.values()], list(gone.values())):
        if completes(now, map(os.fsencode, keys), then):
            return RestoredSource(source, gone, [then])
    return source


def _recorded(path: Path) -> dict[int, str]:
    """{number: path} of the images on record as bad."""
    found = {}
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        try:
            entry = json.loads(line)
            found[int(entry["id"])] = str(entry["name"])
        except (ValueError, KeyError, TypeError):  # half a line of a run that was killed
            continue
    return found
