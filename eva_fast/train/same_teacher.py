"""A run goes on with the teacher it began with, also where its file has moved."""

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from eva_fast.errors import UsageError
from eva_fast.teachers import Teacher
from eva_fast.train import checkpoint

if TYPE_CHECKING:
    from eva_fast.config import Config

log = logging.getLogger(__name__)


def fingerprint(teacher: nn.Module) -> str:
    """Digest of a frozen network: its kind and configuration, every parameter and buffer with its name
    and bytes. A `Teacher`'s whitening is the run's own and does not count."""
    own = set(teacher.state_dict()) if isinstance(teacher, Teacher) else set()
    config, grid = getattr(teacher, "config", None), getattr(teacher, "grid", None)
    digest = hashlib.blake2b(
        f"{type(teacher).__qualname__} {config} {grid}".encode(), digest_size=16
    )
    tensors = {**dict(teacher.named_parameters()), **dict(teacher.named_buffers())}
    for name in sorted(tensors.keys() - own):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        raw: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update(raw)
    return digest.hexdigest()


def check_teacher(teacher: nn.Module | None, config: "Config", out: Path, found: Path) -> None:
    """UsageError where the teacher is named otherwise than when the checkpoint `found` of the run in
    `out` was written, and nothing says that it is the same. A warning where it has other weights under
    the same name."""
    saved = checkpoint.run_state(found)
    other = config.changed(saved["options"]).get("teacher")
    then: Any = saved.get("teacher")
    same = teacher is not None and then is not None and then == fingerprint(teacher)
    if other is None:
        if then is not None and not same:
            log.warning(
                "the teacher computes otherwise than when %s began (other weights, or another precision "
                "or library): it goes on with the one that is there now", out,
            )  # fmt: skip
        return
    before, now = other
    if same:
        log.info("the teacher %s is that of %s: the same weights", now, before)
    elif config.teacher.teacher_moved:
        log.warning("the teacher %s is taken for that of %s, as asked", now, before)
    else:
        reason = "its weights differ" if then else "nothing tells whether it is the same"
        raise UsageError(
            f"{out} was started with other options (teacher: {before!r} -> {now!r}), and {reason}. Give "
            "the same teacher to go on with it, teacher_moved=True (--teacher-moved) if it is the same "
            "in another place, or another out="
        )
