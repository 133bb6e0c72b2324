"""Tar shards, as WebDataset lays them out: local ones read at random through an index of members.

Shards behind a URL or a command, and large compressed ones, are streams; see streams.py.
"""

import contextlib
import gzip
import itertools
import lzma
import os
import re
import tarfile
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator

from eva_fast.data.index import Entries, Index, cached_index
from eva_fast.data.sources.base import Item, Source
from eva_fast.data.sources.folder import SETTLED_SECONDS
from eva_fast.data.sources.streams import StreamSource
from eva_fast.data.sources.tar import StrictInfo, is_compressed, is_image, member_label
from eva_fast.errors import MissingFileError, UsageError

_IN_MEMORY_BYTES = 64 << 20
_OPEN_SHARDS = 64  # file descriptors a process keeps
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")


def expand_braces(pattern: str) -> list[str]:
    """`a-{00..12}.tar` and `{train,val}.tar` spelt out, as a shell does; also several braces.

    Raises ValueError for braces that do not match.
    """
    start = pattern.find("{")
    if start < 0:
        if "}" in pattern:
            raise UsageError(f"unmatched brace in {pattern!r}")
        return [pattern]
    depth, commas = 0, [start]
    for i in range(start, len(pattern)):
        depth += (pattern[i] == "{") - (pattern[i] == "}")
        if pattern[i] == "," and depth == 1:
            commas.append(i)
        if depth == 0:
            break
    else:
        raise UsageError(f"unmatched brace in {pattern!r}")
    head, body, tail = pattern[:start], pattern[start + 1 : i], pattern[i + 1 :]
    numbers = _RANGE.match(body)
    if numbers:
        low, high = numbers.groups()
        if int(low) > int(high):
            raise UsageError(f"the range {{{body}}} in {pattern!r} runs backwards")
        width = len(low) if low.startswith("0") or len(low) == len(high) else 0
        choices = [str(n).zfill(width) for n in range(int(low), int(high) + 1)]
    elif len(commas) > 1:
        bounds = [*commas, i]
        choices = [pattern[a + 1 : b] for a, b in itertools.pairwise(bounds)]
        choices = [deep for choice in choices for deep in expand_braces(choice)]
    else:
        raise UsageError(
            f"{{{body}}} in {pattern!r} is neither a range {{00..12}} nor a list {{a,b}}"
        )
    tails = expand_braces(tail)
    return [head + choice + rest for choice in choices for rest in tails]


@contextlib.contextmanager
def _explained(shard: str) -> Iterator[None]:
    """Turns what tarfile and the decompressors raise on damaged files into one clear error."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UsageError(f"the shard {shard} is not a whole tar file: {error}") from None


class ShardSource(Source):
    """Images of local, uncompressed tar shards; the group of an entry is its shard."""

    knows_labels = True

    def __init__(self, index: Index):
        self.index = index
        self._files: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self.index)

    def item(self, number: int) -> Item:
        """The bytes of member `number`, and its folder as label; raises OSError where the shard
        cannot be read."""
        offset, size = self.index.extent(number)
        shard, name = self.index.entry(number)
        data = os.pread(self._file(shard), size, offset)
        if len(data) < size:
            raise OSError(f"{self.index.groups[shard]} has become shorter than it was")
        return Item(image=data, label=member_label(name))

    def _file(self, shard: int) -> int:
        """A file descriptor; pread keeps no position, so forked processes may share one."""
        if shard not in self._files:
            if len(self._files) >= _OPEN_SHARDS:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = os.open(self.index.groups[shard], os.O_RDONLY)
        self._files.move_to_end(shard)
        return self._files[shard]

    def name(self, number: int) -> str:
        shard, name = self.index.entry(number)
        return f"{self.index.groups[shard]}/{name}"

    def label(self, number: int) -> str | None:
        return member_label(self.index.entry(number)[1])

    def __del__(self):
        for file in self._files.values():
            os.close(file)


class MemorySource(Source):
    """Images of small compressed shards, kept in memory as they are encoded."""

    knows_labels = True

    def __init__(self, shards: list[str]):
        self._names: list[tuple[str, str]] = []  # shard, member
        self._data: list[bytes] = []
        for shard in shards:
            before = len(self._data)
            with _explained(shard), tarfile.open(shard, tarinfo=StrictInfo) as tar:
                for member in tar:
                    if is_image(member):
                        file = tar.extractfile(member)
                        assert file is not None
                        self._names.append((shard, member.name))
                        self._data.append(file.read())
            if len(self._data) == before:
                raise UsageError(f"no image found in the shard {shard}")

    def __len__(self) -> int:
        return len(self._data)

    def item(self, number: int) -> Item:
        return Item(image=self._data[number], label=self.label(number))

    def name(self, number: int) -> str:
        return "/".join(self._names[number])

    def label(self, number: int) -> str | None:
        return member_label(self._names[number][1])


def open_shards(names: list[str]) -> Source:
    """Local shards by index, the others as streams.

    Raises FileNotFoundError for a missing shard, ValueError for one without an image or damaged.
    """
    local = [not re.match(r"^[A-Za-z][A-Za-z0-9+.-]+:", name) for name in names]
    if not all(local):
        return StreamSource(names)
    missing = [name for name in names if not os.path.isfile(name)]
    if missing:
        raise MissingFileError(
            f"{len(missing)} of {len(names)} shards do not exist, the first is {missing[0]}"
        )
    if any(map(is_compressed, names)):
        if sum(os.path.getsize(name) for name in names) > _IN_MEMORY_BYTES:
            return StreamSource(names)
        return MemorySource(names)
    paths = [os.path.realpath(name) for name in names]

    def unchanged(_: Index, stored: list[list[int]]) -> bool:
        return stored == [_stamp(path) for path in paths]

    index = cached_index(["shards", paths], unchanged, lambda: _members(paths), "tar shards")
    return ShardSource(index)


def _stamp(path: str) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def _members(paths: list[str]) -> Entries:
    """Entries of `cached_index` for every image in the shards; returns their sizes and times."""
    stamps = []
    for path in paths:
        recent = time.time() - os.stat(path).st_mtime < SETTLED_SECONDS  # may still be written to
        stamps.append([-1, -1] if recent else _stamp(path))
        yield path
        found = 0
        with _explained(path), tarfile.open(path, "r:", tarinfo=StrictInfo) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
                if is_image(member) and not member.issparse():
                    found += 1
                    yield os.fsencode(member.name), (member.offset_data, member.size)
        if not found:
            raise UsageError(f"no image found in the shard {path}")
    return stamps
