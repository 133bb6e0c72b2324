"""Files and places that several parts need: whole-or-not-at-all writes, the cache folder, CPU count."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from eva_fast.errors import UsageError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """A draft beside `path` to write to; it takes the place of `path` when the block ends well and is
    removed when it raises. Readers see the old file or the whole new one. Missing folders are made,
    and the umask holds even for writers that create files only their owner can read."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        yield draft
        draft.chmod(0o666 & ~_umask())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_to(path: str | os.PathLike, option: str = "out") -> Iterator[None]:
    """Around the writing of what a person asked for at `path`: an OSError becomes a UsageError that
    names the option to change."""
    try:
        yield
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error}; choose another {option}=") from None


def cache_folder(*parts: str) -> Path:
    """Where what can be made again is kept: the user's cache folder, `parts` below eva_fast's own.
    XDG_CACHE_HOME moves it. The folder may not exist yet."""
    return Path(platformdirs.user_cache_dir("eva_fast")).joinpath(*parts)


def cpu_count() -> int:
    """Cores that this process may run on, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _umask() -> int:
    """The process's umask. Only setting it tells it, except where Linux lists it."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0)
    os.umask(mask)
    return mask
