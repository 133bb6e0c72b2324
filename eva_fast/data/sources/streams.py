"""Tar shards that can only be read from their beginning: URLs, commands, large compressed files.

A rank reads several shards at a time (its lanes), takes one image of each in turn and shuffles
windows of that sequence. All of it is a function of (seed, epoch, rank, world) and the data, so a
position is a handful of numbers, and resuming re-reads at most the shards that were open.
"""

import contextlib
import os
import queue
import signal
import subprocess
import tarfile
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from eva_fast.data.loader.order import permute
from eva_fast.data.samples.seeds import mix64
from eva_fast.data.sources.base import Source
from eva_fast.data.sources.shards import StrictInfo, is_compressed, is_image
from eva_fast.errors import MissingFileError, UsageError

LANES = 4  # shards a rank reads at a time
_ATTEMPTS = 3  # to read a shard, ...
_PAUSE_SECONDS = 0.5  # ... with a pause between them that doubles
_AHEAD = 32  # images a lane reads ahead


class Sample(NamedTuple):
    """An image that has been read. `data` is an exception where reading failed."""

    image_id: int
    view: int
    name: str
    data: Any


class StreamSource(Source):
    """Shards behind URLs (fsspec) or commands (`pipe:...`), read in sequence.

    Its length is an estimate: the images in the first shard, which is read when the source is
    opened, times the number of shards. `window` images are shuffled at a time and kept in memory.

    Raises FileNotFoundError for a missing first or last shard, ValueError for one that holds no
    image, is damaged or whose command fails.
    """

    def __init__(self, shards: list[str], window: int = 1024):
        self.shards = shards
        self.window = window
        count = sum(1 for _ in read_shard(shards[0]))
        if not shards[-1].startswith("pipe:"):
            with open_stream(shards[-1]) as file:
                file.read(1)
        self._length = count * len(shards)

    def __len__(self) -> int:
        return self._length

    def read(self, number: int) -> bytes:
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
            if code <= 0:
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
        except ValueError:  # no image, a failed command: the same again
            raise
        except Exception as error:  # file systems behind fsspec have errors of their own
            if attempt < _ATTEMPTS - 1:
                time.sleep(_PAUSE_SECONDS * 2**attempt)
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
                content = tar.extractfile(member)
                assert content is not None
                yield number, f"{shard}/{member.name}", content.read()
            number += 1
        if not number:
            raise UsageError(f"no image found in the shard {shard}")


class ShardStream:
    """One rank's endless sequence of the images of a `StreamSource`, from a state on.

    Every epoch has its own order of shards. Where there are at least as many shards as ranks, a
    rank reads every world-th shard; else every rank reads all shards and takes every world-th
    image. Within an epoch a rank sees each of its images once. `number` tells the sources of a mix
    apart.
    """

    def __init__(
        self,
        source: StreamSource,
        seed: int,
        rank: int,
        world: int,
        number: int = 0,
        state: dict[str, Any] | None = None,
    ):
        self.source = source
        self.rank, self.world, self.number = rank, world, number
        self.key = mix64(mix64(seed) ^ mix64(number))
        self.state = state or {"epoch": 0, **_start_of_epoch(), "offset": 0}

    def __iter__(self) -> Iterator[Sample]:
        """Yields samples; `state` is then the position behind the last one yielded."""
        state = self.state
        epoch, window, turn, places = (state[k] for k in ("epoch", "window", "turn", "places"))
        first = state["offset"]
        while True:
            lanes = _Lanes(self, epoch, turn, places)
            with contextlib.closing(lanes):
                start, samples = lanes.position(), lanes.take(self.source.window)
                while samples:
                    following = lanes.position()
                    ahead: list[Sample] = []
                    key = mix64(self.key ^ mix64(mix64(epoch) + self.rank + 1)) ^ window
                    order = permute(len(samples), key, np.arange(len(samples)))
                    for offset in range(first, len(order)):
                        sample = samples[order[offset]]
                        samples[order[offset]] = None  # type: ignore[call-overload]  # frees it
                        # the next window fills while this one empties: no stop between them
                        ahead += lanes.take(1 if len(ahead) < self.source.window else 0)
                        self.state = {
                            "epoch": epoch, "window": window, **start, "offset": offset + 1,
                        }  # fmt: skip
                        yield sample
                    ahead += lanes.take(self.source.window - len(ahead))
                    start, samples, window, first = following, ahead, window + 1, 0
            epoch, window, first = epoch + 1, 0, 0
            turn, places = 0, _start_of_epoch()["places"]

    def lane(self, epoch: int, lane: int, place: list[int]) -> Iterator[tuple[list[int], Sample]]:
        """(place behind it, sample) for the rest of a lane's epoch."""
        count = len(self.source.shards)
        order = permute(count, mix64(self.key ^ mix64(epoch)), np.arange(count))
        if count >= self.world:
            mine, part, parts = order[self.rank :: self.world], 0, 1
        else:
            mine, part, parts = order, self.rank, self.world
        mine = mine[lane::LANES]
        begin, skip = place
        for turn in range(begin, len(mine)):
            shard = int(mine[turn])
            for number, name, data in read_shard(self.source.shards[shard], skip, part, parts):
                image_id = (self.number << 48) | (shard << 24) | number
                yield [turn, number + 1], Sample(image_id, epoch, name, data)
            skip = 0


def _start_of_epoch() -> dict[str, Any]:
    return {"window": 0, "turn": 0, "places": [[0, 0] for _ in range(LANES)]}


class _Lanes:
    """Takes samples from the lanes of an epoch in turn; a lane that ends is left out."""

    def __init__(self, stream: ShardStream, epoch: int, turn: int, places: list[list[int]]):
        self._turn = turn
        self._places = [list(place) for place in places]
        self._open = [
            Ahead(stream.lane(epoch, lane, place)) for lane, place in enumerate(self._places)
        ]
        self._left = set(range(len(places)))

    def position(self) -> dict[str, Any]:
        return {"turn": self._turn, "places": [list(place) for place in self._places]}

    def take(self, count: int) -> list[Sample]:
        """The next `count` samples, fewer at the epoch's end."""
        taken: list[Sample] = []
        while len(taken) < count and self._left:
            lane = self._turn
            self._turn = (lane + 1) % len(self._places)
            if lane not in self._left:
                continue
            item = self._open[lane].get()
            if item is None:
                self._left.discard(lane)
                self._places[lane] = [1 << 40, 0]  # behind every shard
            else:
                self._places[lane], sample = item
                taken.append(sample)
        return taken

    def close(self) -> None:
        for lane in self._open:
            lane.close()


class Ahead:
    """Runs an iterator in a thread, some items ahead."""

    def __init__(self, items: Iterator[Any]):
        self._queue: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._ended = False
        threading.Thread(target=self._run, args=(items,), daemon=True).start()

    def _run(self, items: Iterator[Any]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
            self._put(None)
        except BaseException as error:  # handed to whoever takes the next item
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.2)
                return True
        return False

    def get(self) -> Any:
        """The next item; None after the last. Raises what the iterator raised."""
        item = None if self._ended else self._queue.get()
        if isinstance(item, BaseException):
            raise item
        self._ended = item is None
        return item

    def close(self) -> None:
        self._stop.set()
