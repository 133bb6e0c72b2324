"""Tar shards, as WebDataset lays them out: local ones read at random through an index of members.

Shards behind a URL or a command, and large compressed ones, are streams; see streams.py.
"""

import contextlib
import lzma
import os
import re
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from eva_fast.data.decode.formats import image_suffixes
from eva_fast.data.index import Entries, Index, cached_index
from eva_fast.data.sources.base import Item, Source
from eva_fast.data.sources.fingerprint import Names
from eva_fast.data.sources.left_out import LeftOut
from eva_fast.data.sources.streams import StreamSource
from eva_fast.data.sources.tar import (
    StrictInfo,
    is_compressed,
    is_image,
    member_label,
    read_member,
)
from eva_fast.data.sources.walk import settled_stamp, stamp
from eva_fast.errors import MissingFileError, UsageError

_IN_MEMORY_BYTES = 64 << 20
MOST_IN_MEMORY = 256 << 20
"""Bytes that compressed shards of up to 64 MB may unpack to, to be kept; images hardly shrink."""
_OPEN_SHARDS = 64  # file descriptors a process keeps


@contextlib.contextmanager
def _explained(shard: str) -> Iterator[None]:
    """Turns what tarfile and the decompressors raise on damaged files into one clear error."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        refused = isinstance(error, OSError) and error.errno is not None  # bz2's own has none
        what = "cannot be read" if refused else "is not a whole tar file"
        raise UsageError(f"the shard {shard} {what}: {error}") from None


class ShardSource(Source):
    """Images of local, uncompressed tar shards; the group of an entry is its shard."""

    knows_labels = True

    def __init__(self, index: Index, left_out: LeftOut, names: str):
        self.index = index
        self.left_out = left_out.counts
        self.names = [names]
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


class _TooLarge(Exception):
    """Shards that unpack to more than `MOST_IN_MEMORY`."""


class MemorySource(Source):
    """Images of small compressed shards, kept in memory as they are encoded."""

    knows_labels = True

    def __init__(self, shards: list[str]):
        self._names: list[tuple[str, str]] = []  # shard, member
        self._data: list[bytes] = []
        left_out, held = LeftOut(), 0
        for shard in shards:
            before = len(self._data)
            with _explained(shard), tarfile.open(shard, tarinfo=StrictInfo) as tar:
                for member in tar:
                    if is_image(member):
                        held += member.size
                        if held > MOST_IN_MEMORY:
                            raise _TooLarge
                        self._names.append((shard, member.name))
                        self._data.append(read_member(tar, member))
                    elif member.isreg():
                        left_out.add_file(member.name)
            if len(self._data) == before:
                raise UsageError(f"no image found in the shard {shard}")
        left_out.tell(shards[0] if len(shards) == 1 else f"{shards[0]} ...")
        self.left_out = left_out.counts
        names = Names()
        for shard, name in self._names:
            names.add(os.fsencode(f"{os.path.basename(shard)}/{name}"))
        self.names = [str(names)]

    def __len__(self) -> int:
        return len(self._data)

    def item(self, number: int) -> Item:
        return Item(image=self._data[number], label=self.label(number))

    def name(self, number: int) -> str:
        return "/".join(self._names[number])

    def label(self, number: int) -> str | None:
        return member_label(self._names[number][1])


_ELSEWHERE = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:")


def as_file(name: str) -> str:
    """The name of what lies in a folder, such that `open_shards` takes it for nothing else: files may
    be called as commands are."""
    return os.path.join(os.curdir, name) if _ELSEWHERE.match(name) else name


def open_shards(names: list[str]) -> Source:
    """Local shards by index, the others, URLs and commands (`pipe:...`), as streams.

    Raises FileNotFoundError for a missing shard, ValueError for one without an image or damaged.
    """
    if any(map(_ELSEWHERE.match, names)):
        return StreamSource(names)
    missing = [name for name in names if not os.path.isfile(name)]
    if missing:
        raise MissingFileError(
            f"{len(missing)} of {len(names)} shards do not exist, the first is {missing[0]}"
        )
    if any(map(is_compressed, names)):
        if sum(os.path.getsize(name) for name in names) > _IN_MEMORY_BYTES:
            return StreamSource(names)
        try:
            return MemorySource(names)
        except _TooLarge:
            return StreamSource(names)
    paths = [os.path.realpath(name) for name in names]

    left_out, found = LeftOut(), {"names": ""}

    def unchanged(_: Index, stored: dict[str, Any]) -> bool:
        same = stored["suffixes"] == list(image_suffixes()) and stored["shards"] == [
            stamp(path) for path in paths
        ]
        if same:
            left_out.restore(stored["left_out"])
            found["names"] = stored["names"]
        return same

    def build() -> Entries:
        signature = yield from _members(paths, left_out)
        found["names"] = signature["names"]
        return signature

    index = cached_index(["shards", paths], unchanged, build, "tar shards")
    left_out.tell(names[0] if len(names) == 1 else f"{names[0]} ...")
    return ShardSource(index, left_out, found["names"])


def _members(paths: list[str], left_out: LeftOut) -> Entries:
    """Entries of `cached_index` for every image in the shards; returns what tells that they change."""
    stamps, names = [], Names()
    for path in paths:
        stamps.append(settled_stamp(path))
        yield path
        found = 0
        with _explained(path), tarfile.open(path, "r:", tarinfo=StrictInfo) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
                if is_image(member):
                    found += 1
                    names.add(os.fsencode(f"{os.path.basename(path)}/{member.name}"))
                    yield os.fsencode(member.name), (member.offset_data, member.size)
                elif member.isreg():
                    left_out.add_file(member.name)
        if not found:
            raise UsageError(f"no image found in the shard {path}")
    return {
        "suffixes": image_suffixes(),
        "shards": stamps,
        "left_out": left_out.stored(),
        "names": str(names),
    }
