"""Checkpoints that are whole or not there: torch.distributed.checkpoint inside an atomic folder.

A checkpoint is written to `step_N.tmp`, its files are listed with size and CRC-32 in
`manifest.json`, everything is flushed to disk, and only then is the folder renamed to `step_N`
(`checkpoint_writer`). A process killed at any moment leaves a `.tmp` folder that is ignored; a damaged
file does not match its manifest and an older checkpoint is taken. A checkpoint of any number of
processes can be read by any other number.

The library is imported where a checkpoint is written or read: it takes as long as the rest of torch,
and a run's first step need not wait for it.
"""

import logging
import re
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eva_fast import world
from eva_fast.documents import read_object
from eva_fast.errors import UsageError
from eva_fast.files import is_name

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
STATE = "state.json"
_NAME = re.compile(r"step_\d+")


def crc32(path: Path) -> int:
    """Of a file's bytes."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def reason(error: BaseException) -> str:
    """What went wrong; without the traceback that DCP puts into its message."""
    from torch.distributed.checkpoint import CheckpointException

    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return str(error) or type(error).__name__


def name_of(step: int) -> str:
    """Of the folder of a checkpoint."""
    return f"step_{step:09d}"


def steps_in(root: Path) -> list[Path]:
    """Finished checkpoints under `root`, oldest first; what is called otherwise is none."""
    found = (p for p in root.glob("step_*") if _NAME.fullmatch(p.name) and p.is_dir())
    return sorted(found, key=lambda p: p.name)


def fault_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        files = _manifest(folder)
    except UsageError as error:
        return f"no readable manifest ({error})"
    for name, (size, crc) in files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file() or path.stat().st_size != size:
            return f"{name} is missing or has another size"
        if crc32(path) != crc:
            return f"{name} is damaged (its checksum differs)"
    return None


def _manifest(folder: Path) -> dict[str, tuple[int, int]]:
    """{name of a file: its size, its CRC-32}. UsageError where it is none."""
    path = folder / MANIFEST
    files = read_object(path).get("files")
    if not isinstance(files, dict) or not {STATE, ".metadata"} <= files.keys():
        raise UsageError(f"{path} does not list the files of a checkpoint")
    for name, entry in files.items():
        if not is_name(name):
            raise UsageError(f"{path} names {name!r}, outside the checkpoint")
        if not isinstance(entry, list) or [type(n) for n in entry] != [int, int]:
            raise UsageError(f"{path} does not say size and checksum of {name!r}")
    return files


def newest(root: Path) -> Path | None:
    """The newest checkpoint under `root` that is whole; damaged ones are logged and passed over."""
    for folder in reversed(steps_in(root)):
        fault = fault_of(folder)
        if fault is None:
            return folder
        log.warning("checkpoint %s is passed over: %s", folder, fault)
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint. UsageError where it is none."""
    return read_object(folder / STATE)


def run_state(folder: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint that a run goes on from: at least its step, its options, the place
    in its data (`loader`) and its kernels. UsageError where one of them is missing or something else."""
    state = read_state(folder)
    step, loader, kernels = state.get("step"), state.get("loader"), state.get("kernels")
    every = state.get("loaders", [])
    sound = {
        "step": type(step) is int and step >= 0,
        "options": isinstance(state.get("options"), dict),
        "place in its data": _is_place(loader)
        and isinstance(every, list)
        and all(map(_is_place, every)),
        "kernels": isinstance(kernels, dict) and _are_texts(kernels.values()),
    }
    if missing := [name for name, found in sound.items() if not found]:
        raise UsageError(f"{folder / STATE} does not hold a run's {', '.join(missing)}")
    return state


def _is_place(loader: Any) -> bool:
    """Whether it can be the state of a loader, which knows itself whether it fits the data."""
    feed = loader.get("feed") if isinstance(loader, dict) else None
    if not isinstance(feed, dict):
        return False
    names, contents = feed.get("names"), loader.get("contents")
    return (
        (names is None or (isinstance(names, list) and _are_texts(names)))
        and type(feed.get("images", 0)) is int
        and (contents is None or (isinstance(contents, dict) and _are_texts(contents.values())))
    )


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def options_in(folder: Path) -> dict[str, Any]:
    """Those of the run that wrote a checkpoint. UsageError where it says none."""
    options = read_state(folder).get("options")
    if not isinstance(options, dict):
        raise UsageError(f"{folder / STATE} does not hold the options of a run")
    return options


def names_in(folder: Path) -> dict[str, Any]:
    """{name of a tensor, as "model.norm.bias": its size and dtype, as DCP describes them}. UsageError
    where the checkpoint holds what is no checkpoint's."""
    from eva_fast.train.checkpoint_reader import SafeReader

    try:
        return SafeReader(folder).read_metadata().state_dict_metadata
    except (ValueError, OSError) as error:
        raise UsageError(f"{folder} is no checkpoint that can be read: {error}") from None


def load(folder: Path, tensors: dict[str, Any]) -> None:
    """Fills `tensors` (nested dict with tensors of the right shapes) in place; of a run of several
    processes all must call it, and each fills its shards. ValueError if the checkpoint does not hold
    them, or holds what is no checkpoint's."""
    import torch.distributed.checkpoint as dcp

    from eva_fast.train.checkpoint_reader import SafeLoads, SafeReader

    alone = world.world().size == 1
    try:
        SafeReader(folder).read_metadata()  # DCP would log a foreign one at length
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(tensors, storage_reader=SafeReader(folder), planner=SafeLoads(), no_dist=alone)
    except (dcp.CheckpointException, Exception) as error:  # the first is no Exception
        raise UsageError(f"checkpoint {folder} does not fit this run: {reason(error)}") from None
