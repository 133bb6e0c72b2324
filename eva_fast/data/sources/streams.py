"""Tar shards that can only be read from their beginning: URLs, commands, large compressed files.

In which order a run reads them is told in loader/shardstream.py.
"""

import contextlib
import os
import signal
import subprocess
import tarfile
import time
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from eva_fast.data.sources.base import Item, Source
from eva_fast.data.sources.fingerprint import Names
from eva_fast.data.sources.tar import StrictInfo, is_compressed, is_image, read_member
from eva_fast.errors import MissingFileError, UsageError

_ATTEMPTS = 3  # to read a shard, ...
PAUSE_SECONDS = 0.5  # ... with a pause between them that doubles


class StreamSource(Source):
    """Shards behind URLs (fsspec) or commands (`pipe:...`), read in sequence.

    Its length is an estimate: the images in the first shard, which is read when the source is
    opened, times the number of shards. `window` images are shuffled at a time and kept in memory.

    Raises FileNotFoundError for a missing first or last shard, ValueError for one that holds no
    image, is damaged or whose command fails.
    """

    def __init__(self, shards: list[str], window: int = 1024):
        self.shards = shards
        names = Names()
        for shard in shards:  # a bucket may move, a command is all there is
            names.add(os.fsencode(shard if shard.startswith("pipe:") else os.path.basename(shard)))
        self.names = [str(names)]
        self.window = window
        count = sum(1 for _ in read_shard(shards[0]))
        if not shards[-1].startswith("pipe:"):
            with open_stream(shards[-1]) as file:
                file.read(1)
        self._length = count * len(shards)

    def __len__(self) -> int:
        return self._length

    def item(self, number: int) -> Item:
        raise TypeError(
            f"{self.shards[0]} ... is a stream and cannot be read by number; copy the shards to a "
            "local disk, uncompressed, for that"
        )


@contextlib.contextmanager
def open_stream(shard: str) -> Iterator[BinaryIO]:
    """The bytes of a shard from its beginning."""
    if not shard.startswith("pipe:"):
        import fsspec

        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(fsspec.open(shard, "rb"))
            except ImportError as error:  # the file system of this protocol is a package of its own
                raise UsageError(f"cannot open {shard}: {error}") from None
            except FileNotFoundError as error:  # so fsspec calls every refusal of a web server
                raise MissingFileError(f"cannot open {shard}: {error.__cause__ or error}") from None
            yield file
        return
    with _output_of(shard.removeprefix("pipe:")) as file:
        yield file


@contextlib.contextmanager
def _output_of(command: str) -> Iterator[BinaryIO]:
    """What a shell command writes. Raises ValueError where it ends with an exit code above 0."""
    # a session of its own: Ctrl-C is the trainer's to handle
    with subprocess.Popen(
        command, shell=True, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout  # type: ignore[misc]
            while process.stdout.read(1 << 16):  # what follows the archive's end
                pass
            code = process.wait()
        except tarfile.TarError:  # often because the command failed: then that is the news
            process.stdout.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            code = process.returncode or 0
            if (
                code <= 0 or code == 128 + signal.SIGPIPE
            ):  # the shell's word for what was closed here
                raise
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        if code:
            raise UsageError(f"the command `{command}` ended with exit code {code}") from None


def read_shard(
    shard: str, skip: int = 0, part: int = 0, parts: int = 1
) -> Iterator[tuple[int, str, bytes]]:
    """(number, name, bytes) of the images of a shard from number `skip` on, in their order.

    Only every `parts`-th image, beginning with number `part`, is given. Where the connection breaks,
    reading goes on with a new one, up to two times.

    Raises ValueError where the shard holds no image, is damaged or cannot be read, and
    FileNotFoundError where it is missing.
    """
    for attempt in range(_ATTEMPTS):
        try:
            for number, name, data in _members(shard, skip, part, parts):
                yield number, name, data
                skip = number + 1
            return
        except UsageError:  # no image, a failed command: the same again
            raise
        except Exception as error:  # file systems behind fsspec have errors of their own
            if attempt < _ATTEMPTS - 1:
                time.sleep(PAUSE_SECONDS * 2**attempt)
                continue
            if isinstance(error, FileNotFoundError):
                raise
            damaged = isinstance(error, (tarfile.TarError, EOFError, zlib.error))
            what = "is not a whole tar file" if damaged else "cannot be read"
            raise UsageError(f"the shard {shard} {what}: {error}") from None


def _members(shard: str, skip: int, part: int, parts: int) -> Iterator[tuple[int, str, bytes]]:
    # "|*" tries every compression and reports none as "file could not be opened"
    mode: Any = "r|*" if is_compressed(shard) or shard.startswith("pipe:") else "r|"
    with (
        open_stream(shard) as file,
        tarfile.open(fileobj=file, mode=mode, tarinfo=StrictInfo) as tar,
    ):
        number = 0
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
            if not is_image(member):
                continue
            if number >= skip and number % parts == part:
                yield number, f"{shard}/{member.name}", read_member(tar, member)
            number += 1
        if not number:
            raise UsageError(f"no image found in the shard {shard}")
