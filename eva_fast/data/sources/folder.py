"""Images as files: a folder, nested or flat, and a text file that lists paths."""

import contextlib
import heapq
import itertools
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from eva_fast.data.index import Entries, Index, cached_index
from eva_fast.data.sources.base import Source
from eva_fast.errors import MissingFileError, UsageError

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm", ".avif", ".jp2",
)  # fmt: skip
_SETTLED_SECONDS = 1.0  # a folder that changed this recently may change again at the same mtime
_CHECKED_PATHS = 20_000


class FileSource(Source):
    """Files by an index; the group of an entry is its folder, relative to `root`."""

    def __init__(self, root: Path, index: Index):
        self.root = root
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def path(self, number: int) -> str:
        group, name = self.index.entry(number)
        return os.path.join(self.root, self.index.groups[group], name)

    def read(self, number: int) -> bytes:
        """The bytes of file `number`; raises OSError where it cannot be read."""
        with open(self.path(number), "rb", buffering=0) as file:
            return file.read()

    def name(self, number: int) -> str:
        return self.path(number)

    def label(self, number: int) -> str | None:
        """The folder the file lies in; None for a file directly in the source's own folder."""
        folder = self.index.groups[self.index.entry(number)[0]]
        return os.path.basename(folder) or None


def open_folder(folder: Path) -> FileSource:
    """All images below `folder`, in the order of their paths, folder by folder."""
    root = folder.resolve()

    def unchanged(index: Index, mtimes: list[int]) -> bool:
        """Adding, removing or renaming an entry changes the mtime of its folder."""
        if len(mtimes) != len(index.groups):
            return False
        return all(
            os.stat(os.path.join(root, index.groups[i])).st_mtime_ns == mtime
            for i, mtime in enumerate(mtimes)
        )

    index = cached_index(["folder", str(root)], unchanged, lambda: _walk(root), str(folder))
    if not len(index):
        raise UsageError(
            f"no image found in {folder}: it and its subfolders hold no file that ends in one of "
            + ", ".join(SUFFIXES)
        )
    return FileSource(root, index)


def _walk(root: Path) -> Entries:
    """Entries of `cached_index` for every image below `root`; returns the folders' mtimes."""
    mtimes: list[int] = []
    waiting, known = [""], set()
    while waiting:
        relative = waiting.pop()
        where = os.path.join(root, relative)
        status = os.stat(where)
        if (status.st_dev, status.st_ino) in known:
            continue  # a link back up the tree, or to a folder that has been read already
        known.add((status.st_dev, status.st_ino))
        recent = time.time() - status.st_mtime < _SETTLED_SECONDS
        mtimes.append(-1 if recent else status.st_mtime_ns)
        yield relative
        folders: list[str] = []
        for name in sorted_in_parts(_images(where, folders)):
            yield name, None
        waiting += [os.path.join(relative, name) for name in sorted(folders, reverse=True)]
    return mtimes


def _images(folder: str, folders: list[str]) -> Iterator[bytes]:
    """The names of the images in `folder`; its subfolders are added to `folders`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                yield os.fsencode(entry.name)
            elif entry.is_dir():
                folders.append(entry.name)


def sorted_in_parts(names: Iterable[bytes], part: int = 500_000) -> Iterator[bytes]:
    """`names` sorted; what exceeds `part` of them waits in temporary files, not in memory."""
    remaining = iter(names)
    with contextlib.ExitStack() as stack:
        files = []
        while len(chunk := sorted(itertools.islice(remaining, part))) == part:
            file = stack.enter_context(tempfile.TemporaryFile())
            for name in chunk:  # a name may hold a newline, but no zero byte or slash
                file.write(name.replace(b"\n", b"/") + b"\n")
            file.seek(0)
            files.append(line[:-1].replace(b"/", b"\n") for line in file)
        yield from heapq.merge(*files, chunk)


def open_list(file: Path) -> FileSource:
    """The images a text file names: a path a line, relative to the file's folder or absolute.

    Blank lines and lines that start with # are skipped. Lists of up to 20,000 paths are checked
    for missing files at once, longer ones by a sample.
    """
    file = file.resolve()
    status = file.stat()
    signature = [status.st_size, status.st_mtime_ns]
    recent = time.time() - status.st_mtime < _SETTLED_SECONDS

    def build() -> Entries:
        folder = None
        with open(file, "rb") as lines:
            for line in lines:
                line = line.strip()
                if not line or line.startswith(b"#"):
                    continue
                here, _, name = line.rpartition(b"/")
                here = here or (b"/" if line.startswith(b"/") else b"")
                if here != folder:
                    folder = here
                    yield os.fsdecode(here)
                yield name, None
        return None if recent else signature

    index = cached_index(
        ["list", str(file)], lambda _, stored: stored == signature, build, file.name
    )
    if not len(index):
        raise UsageError(f"no image found in {file}: the list names no path")
    source = FileSource(file.parent, index)
    step = max(1, len(source) // _CHECKED_PATHS)
    missing = [p for p in map(source.path, range(0, len(source), step)) if not os.path.exists(p)]
    if missing:
        raise MissingFileError(
            f"{len(missing)} of the paths in {file} do not exist, the first is {missing[0]} "
            "(paths in a list are relative to the list's own folder)"
        )
    return source
