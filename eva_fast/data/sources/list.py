"""Images that a text file lists, a path a line, or a Python list of their paths."""

import codecs
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eva_fast.data.index import Entries, Index, cached_index
from eva_fast.data.sources.base import Item, Source
from eva_fast.data.sources.fingerprint import Names
from eva_fast.data.sources.folder import FileSource
from eva_fast.data.sources.left_out import COMMENT, LeftOut
from eva_fast.data.sources.walk import settled_stamp, stamp
from eva_fast.errors import MissingFileError, UsageError
from eva_fast.files import read_file

_CHECKED_PATHS = 20_000


class PathSource(Source):
    """Images by a list of their paths, kept in memory; no labels."""

    def __init__(self, paths: Sequence[str | os.PathLike]):
        self.paths = [os.path.abspath(os.path.expanduser(os.fspath(path))) for path in paths]
        self.root = os.path.commonpath(map(os.path.dirname, self.paths))
        names = Names()
        for path in self.paths:
            names.add(os.fsencode(path.removeprefix(f"{self.root}{os.sep}")))
        self.names = [str(names)]
        missing = [path for path in self.paths if not os.path.isfile(path)]
        if missing:
            raise MissingFileError(
                f"{len(missing)} of the {len(self.paths)} images in the list do not exist, the first "
                f"is {missing[0]}"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def item(self, number: int) -> Item:
        return Item(image=read_file(self.paths[number]))

    def name(self, number: int) -> str:
        return self.paths[number]


def _without_mark(line: bytes, file: Path) -> bytes:
    """The first line of a list without its byte order mark; UsageError where that is UTF-16's."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UsageError(f"{file} is a list in UTF-16: save it as UTF-8")
    return line.removeprefix(codecs.BOM_UTF8)


def open_list(file: Path) -> FileSource:
    """The images a text file names: a path a line, relative to the file's folder, absolute, or
    from a home folder (~).

    Blank lines are skipped, as is the byte order mark that some editors put in front of UTF-8; and
    lines that start with #, which are counted, unless a file is called so. Lists of up to 20,000 paths
    are checked for missing files at once, longer ones by a sample.
    """
    file = file.resolve()
    if not file.is_file():
        raise UsageError(f"{file} is no regular file, which a list of paths must be")
    left_out, found = LeftOut(), {"names": ""}
    folder_of_list = os.fsencode(file.parent)

    def is_there(line: bytes) -> bool:
        return os.path.isfile(
            os.path.join(folder_of_list, line)
        )  # a comment may be too long for a name

    def build() -> Entries:
        signature = settled_stamp(str(file))
        folder, names = None, Names()
        with open(file, "rb") as lines:
            for number, line in enumerate(lines):
                if number == 0:
                    line = _without_mark(line, file)
                line = line.strip()
                if not line:
                    continue
                if line.startswith(b"#") and not is_there(line):
                    left_out.add(COMMENT, os.fsdecode(line))
                    continue
                if line.startswith(b"~") and not is_there(line):
                    line = os.path.expanduser(line)
                here, _, name = line.rpartition(b"/")
                here = here or (b"/" if line.startswith(b"/") else b"")
                if here != folder:
                    folder = here
                    yield os.fsdecode(here)
                names.add(line)
                yield name, None
        found["names"] = str(names)
        return {"list": signature, "left_out": left_out.stored(), **found}

    def unchanged(_: Index, stored: dict[str, Any]) -> bool:
        same = stored["list"] == stamp(str(file))
        if same:
            left_out.restore(stored["left_out"])
            found["names"] = stored["names"]
        return same

    index = cached_index(["list", str(file)], unchanged, build, file.name)
    if not len(index):
        raise UsageError(f"no image found in {file}: the list names no path")
    left_out.tell(file)
    source = FileSource(file.parent, index, left_out, found["names"])
    step = max(1, len(source) // _CHECKED_PATHS)
    missing = [p for p in map(source.name, range(0, len(source), step)) if not os.path.isfile(p)]
    if missing:
        raise MissingFileError(
            f"{len(missing)} of the paths in {file} do not exist, the first is {missing[0]} "
            "(paths in a list are relative to the list's own folder)"
        )
    return source
