"""The folder of a run: opened without losing what is there, and its record of what runs."""

import contextlib
import json
import logging
import platform
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
import yaml
from torch import nn

from eva_fast import native
from eva_fast.documents import read_object
from eva_fast.errors import UsageError
from eva_fast.files import (
    RUN_CONFIG,
    RUN_ENVIRONMENT,
    atomic_write,
    fresh_folder,
    locked,
    writing_to,
)
from eva_fast.ops.settle import record
from eva_fast.train import checkpoint
from eva_fast.version import __version__
from eva_fast.world import from_first, of_all, world

if TYPE_CHECKING:
    from eva_fast.config import Config

log = logging.getLogger(__name__)
SHARED_SECONDS = 20.0


@contextlib.contextmanager
def open_folder(config: "Config") -> Iterator[tuple[Path, Path | None]]:
    """(the run's folder, the checkpoint to go on from or None); the folder is this run's alone until
    the block ends. UsageError where another run writes to it, it holds a run, that was another, or no
    checkpoint of it is whole. Of several processes the first looks and holds it, and tells the others:
    all must see the same folder, and where torchrun began one anew, all go on."""
    if "auto" in of_all(config.run.resume):  # torchrun counts restarts on each machine by itself
        config = replace(config, run=replace(config.run, resume="auto"))
    with contextlib.ExitStack() as held:
        found, error = None, None
        if world().first:
            try:
                out = _make_folder(config)
                held.enter_context(locked(out))
                found = out, _start_from(out, config)
            except (UsageError, OSError) as met:
                error = met
        found, error = from_first((found, error))
        if error is not None:
            raise error
        assert found is not None
        _check_shared(found[0])
        yield found


def _check_shared(out: Path) -> None:
    """UsageError, on every process, unless all see the folder that the first does: they write their
    parts of a checkpoint into one."""
    if world().size == 1:
        return
    mark, token = out / ".shared", from_first(uuid.uuid4().hex)
    if world().first:
        with writing_to(mark):
            mark.write_text(token)
    seen = of_all(_says(mark, token))
    if world().first:
        mark.unlink(missing_ok=True)
    if not all(seen):
        blind = ", ".join(str(rank) for rank, sees in enumerate(seen) if not sees)
        raise UsageError(
            f"{out} is not one folder for all processes: what process 0 writes there is not seen by "
            f"{blind}. Give an out= on storage that all machines share, as a full path"
        )


def _says(path: Path, text: str) -> bool:
    """Whether the file holds the text within a while: network storage may take some seconds."""
    end = time.monotonic() + SHARED_SECONDS
    while True:
        with contextlib.suppress(OSError):
            if path.read_text() == text:
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.05)


def _make_folder(config: "Config") -> Path:
    out = config.run.out
    if out is None:
        name = str(config.model.model).replace("/", "-")
        made_up = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        with writing_to(made_up):
            out = fresh_folder(made_up)
    with writing_to(out):
        (out / "pictures").mkdir(parents=True, exist_ok=True)
    return out


def _start_from(out: Path, config: "Config") -> Path | None:
    found = checkpoint.newest(out / "checkpoints")
    damaged = checkpoint.steps_in(out / "checkpoints")  # of those after `found`
    if found is not None:
        damaged = [folder for folder in damaged if folder.name > found.name]
    if config.run.resume == "never":
        if found is not None or damaged or _has_lines(out / "metrics.jsonl"):
            raise UsageError(
                f"{out} already holds a run; resume='auto' goes on with it, another out= starts anew"
            )
        return None
    if found is None and damaged:
        raise UsageError(
            f"no checkpoint of {out} is whole: {damaged[-1].name}: {checkpoint.fault_of(damaged[-1])}. "
            "Bring one back, or give another out= to begin anew"
        )
    if found is not None:
        other = config.changed(checkpoint.options_in(found))
        for name in ("data", "teacher"):  # may be the same in another place: see same_*.py
            other.pop(name, None)
        if other:
            changes = ", ".join(f"{k}: {then!r} -> {now!r}" for k, (then, now) in other.items())
            raise UsageError(
                f"{out} was started with other options ({changes}); give the same ones to go on "
                "with it, or another out="
            )
    for folder in damaged:
        _set_aside(folder)
    return found


def _set_aside(folder: Path) -> None:
    """A damaged checkpoint is kept for whoever can mend it, and is none of the last ones any more: it
    would have newer ones of earlier steps removed."""
    aside = folder.with_suffix(".damaged")
    with writing_to(aside):
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    log.warning("checkpoint %s is now %s: remove it when it is of no use", folder, aside.name)


def _has_lines(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def write_header(
    out: Path, config: "Config", model: nn.Module, device: torch.device, step: int
) -> None:
    """The record of what runs, before it runs: config.yaml and environment.json. step: at which it
    begins or goes on."""
    if not world().first:
        return
    with atomic_write(out / RUN_CONFIG) as draft:
        draft.write_text(yaml.safe_dump(config.options(), sort_keys=False))
    environment = {
        "eva_fast": __version__,
        "git": _git_sha(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "processes": world().size,
        "cpp_kernels": native.available(),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    before = _environment_before(out) if step else {}
    kernels = record() if config.run.kernels == "auto" else {}
    _take_timings(kernels, before.get("kernels"))
    starts = before.get("starts")
    now = {"step": step, "time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    whole = {
        **environment,
        "kernels": kernels,
        "starts": [*(starts if isinstance(starts, list) else []), now],
    }
    with atomic_write(out / RUN_ENVIRONMENT) as draft:
        draft.write_text(json.dumps(whole, indent=1) + "\n")
    log.info("%s", "  ".join(f"{k} {v}" for k, v in environment.items()))


def _environment_before(out: Path) -> dict[str, Any]:
    """What a run that goes on wrote down when it began; {} where that is lost."""
    try:
        return read_object(out / RUN_ENVIRONMENT)
    except UsageError:
        return {}


def _take_timings(kernels: dict[str, dict[str, Any]], before: Any) -> None:
    """Gives kernels that were taken over from before an interruption the timings of then."""
    for op, entry in kernels.items():
        then = before.get(op) if isinstance(before, dict) else None
        if not isinstance(then, dict) or entry["why"] != "resumed":
            continue
        if then.get("implementation") == entry["implementation"]:
            entry["milliseconds"] = then.get("milliseconds", {})


def say_what_is_missing() -> None:
    """What makes the run slower than it could be, before anything is waited for."""
    if not native.available():
        log.warning(
            "the C++ kernels are not built, so the CPU's part is slower: see eva-fast doctor"
        )


def _git_sha() -> str | None:
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def last_metrics(out: Path) -> dict[str, Any]:
    """The last line of `metrics.jsonl`, with the loss of the first as `first_loss`; {} if empty."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    if not lines:
        return {}
    return {"first_loss": json.loads(lines[0])["loss"], **json.loads(lines[-1])}
