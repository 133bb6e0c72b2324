"""Images that a text file lists, a path a line."""

import os
import time
from pathlib import Path

from eva_fast.data.index import Entries, cached_index
from eva_fast.data.sources.folder import SETTLED_SECONDS, FileSource
from eva_fast.errors import MissingFileError, UsageError

_CHECKED_PATHS = 20_000


def open_list(file: Path) -> FileSource:
    """The images a text file names: a path a line, relative to the file's folder or absolute.

    Blank lines and lines that start with # are skipped. Lists of up to 20,000 paths are checked
    for missing files at once, longer ones by a sample.
    """
    file = file.resolve()
    status = file.stat()
    signature = [status.st_size, status.st_mtime_ns]
    recent = time.time() - status.st_mtime < SETTLED_SECONDS

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
    missing = [p for p in map(source.name, range(0, len(source), step)) if not os.path.exists(p)]
    if missing:
        raise MissingFileError(
            f"{len(missing)} of the paths in {file} do not exist, the first is {missing[0]} "
            "(paths in a list are relative to the list's own folder)"
        )
    return source
