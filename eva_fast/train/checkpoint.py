"""Checkpoints that are whole or not there: torch.distributed.checkpoint inside an atomic folder.

A checkpoint is written to `step_N.tmp`, its files are listed with size and CRC-32 in
`manifest.json`, everything is flushed to disk, and only then is the folder renamed to `step_N`.
A process killed at any moment leaves a `.tmp` folder that is ignored; a damaged file does not match
its manifest and an older checkpoint is taken.

The library is imported where a checkpoint is written or read: it takes as long as the rest of torch,
and a run's first step need not wait for it.
"""

import json
import logging
import os
import shutil
import warnings
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eva_fast.errors import RunError, UsageError

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
STATE = "state.json"


@contextmanager
def _one_process():
    """Silences DCP's remark that torch.distributed is not initialised: one process is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: BaseException) -> str:
    """What went wrong; without the traceback that DCP puts into its message."""
    from torch.distributed.checkpoint import CheckpointException

    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return str(error) or type(error).__name__


def steps_in(root: Path) -> list[Path]:
    """Finished checkpoints under `root`, oldest first."""
    found = (p for p in root.glob("step_*") if p.suffix != ".tmp" and p.is_dir())
    return sorted(found, key=lambda p: p.name)


def save(root: Path, step: int, tensors: dict[str, Any], state: dict[str, Any], keep: int) -> Path:
    """Writes checkpoint `step`: `tensors` (nested dict of tensors) and `state` (JSON). Older
    checkpoints than the newest `keep` are removed afterwards. Returns its folder. RuntimeError if it
    cannot be written (a full disk, say)."""
    from torch.distributed.checkpoint import CheckpointException

    final = root / f"step_{step:09d}"
    if final.is_dir() and fault_of(final) is None:
        return final
    try:
        _write(final, step, tensors, state)
    except (CheckpointException, OSError) as error:  # the former is no Exception
        raise RunError(f"checkpoint {final} cannot be written: {_reason(error)}") from error
    for old in steps_in(root)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _write(final: Path, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> None:
    import torch.distributed.checkpoint as dcp

    draft = final.with_suffix(".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    with _one_process():
        dcp.save(
            tensors,
            storage_writer=dcp.FileSystemWriter(draft, single_file_per_rank=True, sync_files=True),
            no_dist=True,
        )
    (draft / STATE).write_text(json.dumps(state))
    files = sorted(p for p in draft.iterdir() if p.is_file())
    manifest = {p.name: [p.stat().st_size, _crc32(p)] for p in files}
    (draft / MANIFEST).write_text(json.dumps({"step": step, "files": manifest}))
    for path in (draft / STATE, draft / MANIFEST, draft):
        _flush(path)
    if final.is_dir():  # damaged, or it would have been returned above
        shutil.rmtree(final)
    draft.rename(final)
    _flush(final.parent)


def fault_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"no readable manifest ({error})"
    for name, (size, crc) in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} is missing or has another size"
        if _crc32(path) != crc:
            return f"{name} is damaged (its checksum differs)"
    return None


def newest(root: Path) -> Path | None:
    """The newest checkpoint under `root` that is whole; damaged ones are logged and passed over."""
    for folder in reversed(steps_in(root)):
        fault = fault_of(folder)
        if fault is None:
            return folder
        log.warning("checkpoint %s is passed over: %s", folder, fault)
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint."""
    return json.loads((folder / STATE).read_text())


def names_in(folder: Path) -> dict[str, Any]:
    """{name of a tensor, as "model.norm.bias": its size and dtype, as DCP describes them}."""
    from torch.distributed.checkpoint import FileSystemReader

    return FileSystemReader(folder).read_metadata().state_dict_metadata


def load(folder: Path, tensors: dict[str, Any]) -> None:
    """Fills `tensors` (nested dict with tensors of the right shapes) in place. ValueError if the
    checkpoint does not hold them."""
    import torch.distributed.checkpoint as dcp

    try:
        with _one_process():
            dcp.load(tensors, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    except (dcp.CheckpointException, RuntimeError, KeyError, ValueError) as error:
        raise UsageError(f"checkpoint {folder} does not fit this run: {_reason(error)}") from None
