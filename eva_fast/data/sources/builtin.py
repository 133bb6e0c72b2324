"""The images that come with the package: 2,154 Open Clipart drawings in 13 classes.

They are tar shards of WebP files, small enough (under 5 MB) to be kept in memory. See NOTICE for
their origin and ../clipart/pack.py for how they were packed.
"""

from pathlib import Path

from eva_fast.data.sources.shards import MemorySource
from eva_fast.errors import MissingFileError, UsageError

FOLDER = Path(__file__).parents[1] / "clipart"
SPLITS = ("train", "val")


def open_builtin(split: str = "train") -> MemorySource:
    """The drawings of `split`: 1,603 to train on, 551 to validate."""
    if split not in SPLITS:
        raise UsageError(f"the built-in data has the splits {' and '.join(SPLITS)}, not {split!r}")
    shards = sorted(str(path) for path in FOLDER.glob(f"{split}-*.tar.gz"))
    if not shards:
        raise MissingFileError(f"the built-in images are missing from {FOLDER}: reinstall eva_fast")
    return MemorySource(shards)
