"""A table of files on disk: names, folders and, for tar shards, extents; read through small windows.

30 million paths as a Python list are several gigabytes in every process. Here a name costs its
bytes plus 12 (24 with an extent), lies in a cache folder, and is read by offset from a memory map
whose pages are given back regularly, so that the resident part stays small.
"""

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from eva_fast.data.progress import progress
from eva_fast.errors import UsageError
from eva_fast.files import cache_folder

FORMAT = 2
_RELEASE_EVERY = 8  # look-ups; each maps some seven neighbourhoods, up to 5 MB together (measured)
_KNOWN_GROUPS = 100_000  # remembered while an index is written, to name each of them once
_EXTENT = struct.Struct("<QQ")  # where a member's bytes start in its shard, and how many


class _Map:
    """A read-only file of bytes, mapped; empty files too. Pickles as its path."""

    def __init__(self, path: Path):
        self.path = path
        self.size = path.stat().st_size
        self._map: mmap.mmap | bytes = b""
        if self.size:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if hasattr(mmap, "MADV_RANDOM"):
                self._map.madvise(mmap.MADV_RANDOM)

    def __reduce__(self):
        return _Map, (self.path,)

    def __getitem__(self, where: slice) -> bytes:
        return self._map[where]

    def release(self) -> None:
        """Gives the mapped pages back to the system; they stay in its page cache."""
        if isinstance(self._map, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


class Strings:
    """Strings by number, in two files: the bytes, and where each one ends (uint64)."""

    def __init__(self, folder: Path, name: str):
        self._bytes = _Map(folder / f"{name}.bytes")
        self._ends = _Map(folder / f"{name}.ends")

    def __len__(self) -> int:
        return self._ends.size // 8

    def __getitem__(self, number: int) -> str:
        if number:
            start, end = struct.unpack("<QQ", self._ends[8 * number - 8 : 8 * number + 8])
        else:
            start, end = 0, struct.unpack("<Q", self._ends[0:8])[0]
        return os.fsdecode(self._bytes[start:end])

    def whole(self) -> bool:
        """Whether both files have their sizes."""
        count = len(self)
        end = struct.unpack("<Q", self._ends[8 * count - 8 : 8 * count])[0] if count else 0
        return self._ends.size == 8 * count and self._bytes.size == end

    def release(self) -> None:
        self._bytes.release()
        self._ends.release()


class Index:
    """`folder_of(i)`, `name(i)` and, for members of shards, `extent(i)` of file number i.

    `groups` are the folders or shards the files lie in; a group is itself a string by number.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._names = Strings(folder, "names")
        self.groups = Strings(folder, "groups")
        self._group_of = _Map(folder / "group_of.u32")
        extents = folder / "extents.u64"
        self._extents = _Map(extents) if extents.exists() else None
        self._lookups = 0

    def __len__(self) -> int:
        return len(self._names)

    def holds(self, count: int) -> bool:
        """Whether its files are of `count` entries, by their sizes."""
        extents = self._extents is None or self._extents.size == 16 * count
        return (
            len(self) == count
            and self._group_of.size == 4 * count
            and extents
            and self._names.whole()
            and self.groups.whole()
        )

    def __reduce__(self):
        return Index, (self.folder,)

    def entry(self, number: int) -> tuple[int, str]:
        """(number of the group, name) of file `number`."""
        self._lookups += 1
        if self._lookups % _RELEASE_EVERY == 0:
            for part in (self._names, self.groups, self._group_of, self._extents):
                if part is not None:
                    part.release()
        group = struct.unpack("<I", self._group_of[4 * number : 4 * number + 4])[0]
        return group, self._names[number]

    def extent(self, number: int) -> tuple[int, int]:
        """(offset, size) in bytes of member `number` in its shard."""
        assert self._extents is not None
        return _EXTENT.unpack(self._extents[16 * number : 16 * number + 16])


# What a builder yields: the name of a group (str), or a file of the group last named.
Entry = str | tuple[bytes, tuple[int, int] | None]
Entries = Generator[Entry, None, Any]


def cached_index(
    key: object, signature: Callable[[Index, Any], bool], build: Callable[[], Entries], what: str
) -> Index:
    """The index of `key`, from the cache where its signature still holds, else built anew.

    Arguments:
        key: says which data this is (JSON-able); one cache entry is kept for it.
        signature: callable on the stored Index and its signature, whether it is still right.
        build: callable yielding `Entry`s; its generator returns the signature (JSON-able).
        what: the data's name for the progress bar.
    """
    digest = hashlib.sha256(json.dumps([FORMAT, key]).encode()).hexdigest()[:24]
    root = cache_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except OSError as error:
        raise UsageError(
            f"the cache folder {root} cannot be written ({error}): set XDG_CACHE_HOME to another"
        ) from error
    folder = root / f"index-{digest}"
    with _only_one(root / f"index-{digest}.lock"):
        with contextlib.suppress(Exception):  # a damaged one can fail in any way: it is built anew
            stored = json.loads((folder / "index.json").read_text())
            index = Index(folder)
            if index.holds(stored["count"]) and signature(index, stored["signature"]):
                return index
        temporary = Path(tempfile.mkdtemp(prefix=f"index-{digest}.", dir=root))
        try:
            _write(temporary, build(), what)
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return Index(folder)


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """The processes of one machine build an index once; the others wait for it."""
    lock = FileLock(path)
    with contextlib.suppress(OSError, NotImplementedError):  # a file system without locks
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write(folder: Path, entries: Entries, what: str) -> None:
    files = {
        name: open(folder / name, "wb", buffering=1 << 20)  # noqa: SIM115
        for name in ("names.bytes", "names.ends", "groups.bytes", "groups.ends", "group_of.u32")
    }
    extents = None
    known: dict[bytes, int] = {}
    count = groups = group = end = group_end = 0
    signature: object = None
    try:
        with progress(f"indexing {what}") as show:
            while True:
                try:
                    entry = next(entries)
                except StopIteration as stop:
                    signature = stop.value
                    break
                if isinstance(entry, str):
                    raw = os.fsencode(entry)
                    group = known.get(raw, groups)
                    if group == groups:
                        group_end += len(raw)
                        files["groups.bytes"].write(raw)
                        files["groups.ends"].write(struct.pack("<Q", group_end))
                        groups += 1
                        if len(known) < _KNOWN_GROUPS:
                            known[raw] = group
                    continue
                name, extent = entry
                end += len(name)
                files["names.bytes"].write(name)
                files["names.ends"].write(struct.pack("<Q", end))
                files["group_of.u32"].write(struct.pack("<I", group))
                if extent is not None:
                    if extents is None:
                        extents = open(folder / "extents.u64", "wb", buffering=1 << 20)  # noqa: SIM115
                    extents.write(_EXTENT.pack(*extent))
                count += 1
                if count % 1024 == 0:
                    show(count)
    finally:
        for file in [*files.values(), *([extents] if extents else [])]:
            file.close()
    (folder / "index.json").write_text(json.dumps({"count": count, "signature": signature}))
