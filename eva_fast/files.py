"""Files and places that several parts need: whole-or-not-at-all writes, folders of one's own, paths as
people write them, the cache folder, CPU count."""

import contextlib
import io
import itertools
import logging
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from eva_fast.errors import UsageError

log = logging.getLogger(__name__)
LOCK = ".lock"
RUN_CONFIG, RUN_ENVIRONMENT = "config.yaml", "environment.json"  # each run's folder holds both
RUN_PICTURES = ("pictures", "picture.png")  # where a run draws, in its folder
# The workers that a killed run leaves behind hold its lock for up to a second.
LOCK_SECONDS = 3.0


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


def is_name(name: object) -> bool:
    """Whether it names a file in a folder, and nothing outside of that."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not any(c in name for c in "/\\\0")
    )


def read_file(path: str | os.PathLike[str], most: int = -1) -> bytes:
    """The bytes of a regular file, at most so many from its beginning; OSError for anything else."""
    with reading(path) as file:
        return file.read(most)


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[io.BufferedReader]:
    """A regular file to read; OSError for anything else, for which a plain `open` may wait without end
    (a FIFO nobody writes to) and a read never end."""
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("not a regular file")
        yield file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def fresh_folder(path: Path) -> Path:
    """Makes the folder `path`, or where that is there already `path-2`, `path-3`, ... Of processes that
    ask at once each gets its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError  # counting has no end


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps `folder` to this process for the block. The operating system holds the lock: it ends with
    the process, however that ends. UsageError where another process has it; a file system that knows
    no locks is told of and used without."""
    lock = FileLock(folder / LOCK, timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"another run is writing to {folder}; wait for its end, or give another out="
        ) from None
    except (OSError, NotImplementedError) as error:
        log.warning("%s cannot be locked (%s): start no second run in it", folder, error)
    try:
        yield
    finally:
        lock.release()


def is_run(folder: str | os.PathLike) -> bool:
    """Whether a folder is that of a run."""
    return all(os.path.isfile(os.path.join(folder, n)) for n in (RUN_ENVIRONMENT, RUN_CONFIG))


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
