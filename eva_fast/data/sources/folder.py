"""Images as files in a folder, nested or flat; the folder a file lies in is its label."""

import contextlib
import heapq
import itertools
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from eva_fast.data.index import Entries, Index, cached_index
from eva_fast.data.sources.base import Item, Source
from eva_fast.errors import UsageError

log = logging.getLogger(__name__)

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm", ".avif", ".jp2",
)  # fmt: skip
SETTLED_SECONDS = 1.0  # a folder that changed this recently may change again at the same mtime


class FileSource(Source):
    """Files by an index; the group of an entry is its folder, relative to `root`."""

    knows_labels = True

    def __init__(self, root: Path, index: Index):
        self.root = root
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def item(self, number: int) -> Item:
        """The bytes of file `number`, and its folder as label; raises OSError where it cannot be
        read. A file directly in the source's own folder has no label."""
        group, name = self.index.entry(number)
        folder = self.index.groups[group]
        with open(os.path.join(self.root, folder, name), "rb", buffering=0) as file:
            return Item(image=file.read(), label=os.path.basename(folder) or None)

    def name(self, number: int) -> str:
        group, name = self.index.entry(number)
        return os.path.join(self.root, self.index.groups[group], name)

    def label(self, number: int) -> str | None:
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
        try:
            status = os.stat(where)
            os.scandir(where).close()
        except OSError as error:
            if not relative:
                raise
            log.warning("%s is left out: %s", where, error.strerror)
            mtimes[0] = -1  # it may be readable next time, which no folder's mtime tells
            continue
        if (status.st_dev, status.st_ino) in known:
            continue  # a link back up the tree, or to a folder that has been read already
        known.add((status.st_dev, status.st_ino))
        recent = time.time() - status.st_mtime < SETTLED_SECONDS
        mtimes.append(-1 if recent else status.st_mtime_ns)
        yield relative
        folders: list[str] = []
        broken: list[str] = []
        for name in sorted_in_parts(_images(where, folders, broken)):
            yield name, None
        if broken:
            log.warning("%s: %d links lead nowhere, %s first", where, len(broken), broken[0])
            mtimes[-1] = -1  # their targets may come, which this folder's mtime does not tell
        waiting += [os.path.join(relative, name) for name in sorted(folders, reverse=True)]
    return mtimes


def _images(folder: str, folders: list[str], broken: list[str]) -> Iterator[bytes]:
    """The names of the images in `folder`; its subfolders are added to `folders`, and the links
    that lead nowhere or to themselves to `broken`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not os.path.exists(entry.path):
                broken.append(entry.name)
            elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
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
