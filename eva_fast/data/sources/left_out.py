"""What a source met and does not read: counted, said once, and kept with its index."""

import collections
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

from eva_fast.data.decode.formats import SUFFIXES

log = logging.getLogger(__name__)

# Reasons that are no suffix.
NO_SUFFIX = "no suffix"
BROKEN_LINK = "links that lead nowhere"
UNREADABLE = "folders that cannot be read"
NO_FILE = "named like images, but no regular files"
RUN = "folders of runs"
COMMENT = "comment lines"
OTHERS = "other suffixes"

_MOST_SUFFIXES = 1000  # a dot within names such as 0a.1b2c makes as many suffixes as files
_SHOWN = 12

_REMEDIES = {
    (".heic", ".heif", ".hif"): "pip install pillow-heif reads HEIC",
    (".avif",): "pip install pillow-avif-plugin reads AVIF",
    (".jxl",): "pip install pillow-jxl-plugin reads JPEG XL",
    (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz"): (
        "tar shards are data of their own (data='FOLDER/*.tar')"
    ),
    (".zip", ".7z", ".rar", ".gz", ".zst"): "archives have to be unpacked",
    (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw", ".raw"): (
        "RAW files have to be converted"
    ),
}  # fmt: skip
_ANY_NAME = "a text file of paths reads images whatever they are called"


class LeftOut:
    """Counts by suffix, or by another reason, each with the first path of its kind."""

    def __init__(self) -> None:
        self._found: dict[str, list[Any]] = {}  # reason: [count, first path]

    def add(self, reason: str, path: str) -> None:
        self._found.setdefault(reason, [0, path])[0] += 1

    def add_file(self, path: str) -> None:
        """A file whose name does not say that it is an image."""
        name = os.path.basename(path).lower()
        suffix = os.path.splitext(name)[1] or NO_SUFFIX
        if name.endswith((".tar.gz", ".tar.bz2", ".tar.xz")):
            suffix = ".tar" + suffix
        if suffix not in self._found and len(self._found) > _MOST_SUFFIXES:
            suffix = OTHERS
        self.add(suffix, path)

    def stored(self) -> dict[str, list[Any]]:
        """For JSON, and for `restore`."""
        return self._found

    def restore(self, stored: dict[str, list[Any]]) -> None:
        self._found = stored

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind, the most frequent first."""
        return dict(
            collections.Counter({k: count for k, (count, _) in self._found.items()}).most_common()
        )

    def tell(self, where: object) -> None:
        """One line in the log: a warning where images may be among it."""
        if not self._found:
            return
        level = logging.WARNING if self._may_be_images() else logging.INFO
        log.log(level, "%s", printable(f"{where}: not read as images: {self}"))

    def __str__(self) -> str:
        shown = [
            f"{reason} {count:,}" + (f" ({first})" if not reason.startswith(".") else "")
            for reason, (count, first) in sorted(self._found.items(), key=lambda item: -item[1][0])
        ]
        more = len(shown) - _SHOWN
        text = ", ".join(shown[:_SHOWN]) + (f" and {more} kinds more" if more > 0 else "")
        remedies = [say for kinds, say in _REMEDIES.items() if any(k in self._found for k in kinds)]
        if any(map(_like_an_image, self._found)):
            remedies.append(_ANY_NAME)
        return "; ".join([text, *remedies])

    def _may_be_images(self) -> bool:
        reasons = {BROKEN_LINK, UNREADABLE, NO_FILE, OTHERS, *sum(_REMEDIES, ())}
        return any(kind in reasons or _like_an_image(kind) for kind in self._found)


def _like_an_image(kind: str) -> bool:
    """No suffix, or one such as .jpg_large, .jpg:orig and .png~."""
    return kind == NO_SUFFIX or kind.startswith(SUFFIXES)


def printable(text: str) -> str:
    """A file's name need not be valid UTF-8; what is not is shown as an escape."""
    return text.encode(errors="backslashreplace").decode()


def summed(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The counts of several sources as one."""
    total: collections.Counter[str] = collections.Counter()
    for part in parts:
        total.update(part)
    return dict(total.most_common())
