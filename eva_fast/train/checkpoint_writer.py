"""Writes checkpoints beside the run: a thread of each process writes what was copied at once.

The state is copied to host memory between two steps; all that follows, files, checksums and the
renaming, happens while the run goes on. One checkpoint is written at a time. Several processes write
their shards into one draft folder and talk over a group of their own, for the run's own is busy. What
happens to a draft is told in `checkpoint`.
"""

import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from torch import Tensor

from eva_fast import world
from eva_fast.errors import RunError
from eva_fast.ops.shards import local
from eva_fast.train.checkpoint import MANIFEST, STATE, crc32, fault_of, name_of, reason, steps_in

log = logging.getLogger(__name__)


class Writer:
    """Checkpoints under `root`. Close it, or use it in a `with` block.

    Args:
        root: made when the first one is written.
        keep: how many of the newest stay.
        keep_every: those of steps that are multiples of it stay too.
    """

    def __init__(self, root: Path, keep: int, keep_every: int | None = None):
        self.root, self.keep, self.keep_every = root, keep, keep_every
        self._group = world.host_group()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None
        self._written: SimpleQueue[Path] = SimpleQueue()

    def start(self, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        """Begins to write checkpoint `step`: `tensors` (nested dict of tensors) as they are now, and
        `state` (JSON). Waits for the one before; what that met is raised here, RunError."""
        self.wait()
        copied = _copied(tensors)
        self._running = self._thread.submit(self._write, step, copied, state)

    def wait(self) -> None:
        """Until what was begun is on disk. RunError where it could not be written (a full disk, say):
        older checkpoints are untouched."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Waits, and ends the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            self.close()
        else:  # what ended the block is what is told
            self._thread.shutdown(wait=world.world().size == 1, cancel_futures=True)

    def _write(self, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        from torch.distributed.checkpoint import CheckpointException

        final = self.root / name_of(step)
        try:
            if self._first(lambda: final.is_dir() and fault_of(final) is None):
                return
            self._write_draft(final, step, tensors, state)
        except (CheckpointException, OSError, RuntimeError) as error:  # the first is no Exception
            why = self._full(tensors) or reason(error)
            if world.world().first:
                shutil.rmtree(final.with_suffix(".tmp"), ignore_errors=True)
            raise RunError(f"checkpoint {final} cannot be written: {why}") from error
        if world.world().first:
            self._remove_old()
            self._written.put(final)

    def written(self) -> Iterator[Path]:
        """Checkpoints that came to be on disk since the last call; on the first process alone."""
        while not self._written.empty():
            yield self._written.get()

    def _full(self, tensors: dict[str, Any]) -> str | None:
        """In plain words, where it is for want of room: the library's own say nothing of that."""
        need, free = _bytes(tensors), shutil.disk_usage(_there(self.root)).free
        if free > need:
            return None
        return (
            f"No space left on device: it needs {need / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free. "
            "Older checkpoints are whole; make room, or keep fewer (keep_checkpoints)"
        )

    def _write_draft(
        self, final: Path, step: int, tensors: dict[str, Any], state: dict[str, Any]
    ) -> None:
        import torch.distributed.checkpoint as dcp

        draft = final.with_suffix(".tmp")
        self._first(lambda: _emptied(draft))
        # for good: a thread cannot silence a warning for itself alone
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(
            tensors,
            storage_writer=dcp.FileSystemWriter(draft, single_file_per_rank=True, sync_files=True),
            process_group=self._group,
            no_dist=self._group is None,
        )
        listed = self._gathered(lambda: _listed(draft, state))
        self._first(lambda: _finished(draft, final, step, listed))

    def _gathered(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `work` gives on all processes; an OSError of one on all, so that none waits for it."""
        if self._group is None:
            return work()
        import torch.distributed as dist

        found: Any
        try:
            found = work()
        except OSError as error:
            found = error
        parts: list[Any] = [None] * world.world().size
        dist.all_gather_object(parts, found, group=self._group)
        for part in parts:
            if isinstance(part, OSError):
                raise part
        return {name: entry for part in parts for name, entry in part.items()}

    def _first(self, work: Any) -> Any:
        """What `work` gives on process 0, where alone it is done; an OSError of it on all."""
        if self._group is None:
            return work()
        import torch.distributed as dist

        box: list[Any] = [None]
        if world.world().first:
            try:
                box = [work()]
            except OSError as error:
                box = [error]
        dist.broadcast_object_list(box, src=0, group=self._group)
        if isinstance(box[0], OSError):
            raise box[0]
        return box[0]

    def _remove_old(self) -> None:
        for folder in steps_in(self.root)[: -self.keep]:
            step = int(folder.name.removeprefix("step_"))
            if not self.keep_every or step % self.keep_every:
                shutil.rmtree(folder, ignore_errors=True)


def save(root: Path, step: int, tensors: dict[str, Any], state: dict[str, Any], keep: int) -> Path:
    """Writes checkpoint `step` and returns its folder when it is on disk."""
    with Writer(root, keep) as writer:
        writer.start(step, tensors, state)
    return root / name_of(step)


def _copied(tensors: dict[str, Any]) -> dict[str, Any]:
    """A copy in host memory, shards as shards."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=False,
        )
    )
    try:
        return stager.stage(tensors)  # type: ignore[return-value]
    finally:
        stager.close()


def _bytes(tree: Any) -> int:
    """Of all tensors in nested dicts; of shards, this process's."""
    if isinstance(tree, dict):
        return sum(map(_bytes, tree.values()))
    return local(tree).nbytes if isinstance(tree, Tensor) else 0


def _there(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _emptied(draft: Path) -> None:
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)


def _listed(draft: Path, state: dict[str, Any]) -> dict[str, Any]:
    """{name: [size, checksum]} of this process's files; of the first also `state` and DCP's table."""
    rank, first = world.world().rank, world.world().first
    own = sorted(p for p in draft.iterdir() if p.name.startswith(f"__{rank}_"))
    if first:
        (draft / STATE).write_text(json.dumps(state))
        own += [draft / STATE, draft / ".metadata"]
    return {p.name: [p.stat().st_size, crc32(p)] for p in own}


def _finished(draft: Path, final: Path, step: int, files: dict[str, Any]) -> None:
    """Makes the draft the checkpoint."""
    (draft / MANIFEST).write_text(json.dumps({"step": step, "files": dict(sorted(files.items()))}))
    for path in (draft / STATE, draft / MANIFEST, draft):
        _flush(path)
    if final.is_dir():  # damaged, or it would not have been written again
        shutil.rmtree(final)
    draft.rename(final)
    _flush(final.parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
