"""A source some of whose images were deleted since a run began, with the numbers it had then."""

import bisect
import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
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
    bad = {n - start: path for n, path in bad.items() if start <= n < start + count_of(then)}
    for names_of_bad in _namings(bad):
        gone = {
            n: name
            for n, name in names_of_bad.items()
            if not os.path.exists(os.path.join(source.root, name))
        }
        for missing in (gone, names_of_bad):  # deleted, or no longer in a list while the file stays
            if missing and completes(now, map(os.fsencode, missing.values()), then):
                paths = {n: os.path.join(source.root, name) for n, name in missing.items()}
                return RestoredSource(source, paths, [then])
    return source


def _namings(bad: Mapping[int, str]) -> Iterator[dict[int, str]]:
    """What the images on record may be called in a fingerprint: their paths as they are, or relative
    to one of the folders that all of them lay in, wherever that folder is now."""
    yield dict(bad)
    names = dict(bad)
    while names and len({name.partition(os.sep)[:2] for name in names.values()}) == 1:
        names = {number: name.partition(os.sep)[2] for number, name in names.items()}
        if not all(names.values()):
            break
        yield dict(names)


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
        except (
            ValueError,
            KeyError,
            TypeError,
            OverflowError,
            RecursionError,
        ):  # half a line of a run that was killed
            continue
    return found
