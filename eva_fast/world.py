"""The processes of a run: this one alone, or those that torchrun started.

Whoever works on a share of a batch, or measures what concerns all, asks here. In a run of one process
nothing here touches torch.distributed, or any tensor.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch import Tensor

from eva_fast.errors import UsageError


@dataclass(frozen=True, slots=True)
class World:
    """Which of how many processes this is, and which of those on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        """Machines, where all have as many processes; 1 where that is not so."""
        return self.size // self.local_size if self.size % self.local_size == 0 else 1


ALONE = World()
_world = ALONE
_patience: timedelta | None = None
_NAMES = {
    "rank": "RANK",
    "size": "WORLD_SIZE",
    "local_rank": "LOCAL_RANK",
    "local_size": "LOCAL_WORLD_SIZE",
}


def world() -> World:
    """The processes of the run that is going on; `ALONE` where none, or one process, is."""
    return _world


@contextlib.contextmanager
def joined(to: World, patience: timedelta | None = None) -> Iterator[World]:
    """For the block this process is one of `to`, whose process group is there. patience: how long a
    process waits for another in `host_group`."""
    global _world, _patience
    before, _world, _patience = (_world, _patience), to, patience or _patience
    try:
        yield to
    finally:
        _world, _patience = before


def host_group() -> Any:
    """A group of its own for what the hosts exchange beside the steps; None in one process. All must
    call it. PyTorch would give it half an hour, whatever the run's own group has."""
    if _world.size == 1:
        return None
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=_patience)


def asked_for(environment: Mapping[str, str] = os.environ) -> World:
    """What the environment says, as torchrun sets it; `ALONE` where it says nothing. ValueError for
    variables that are not numbers, or do not fit together."""
    found = {field: environment[name] for field, name in _NAMES.items() if name in environment}
    if found.get("size", "1") == "1":
        return ALONE
    try:
        numbers = {field: int(value) for field, value in found.items()}
    except ValueError:
        shown = ", ".join(f"{_NAMES[field]}={value!r}" for field, value in found.items())
        raise UsageError(f"{shown} are set and are not all numbers: start it by torchrun") from None
    numbers.setdefault("local_rank", numbers.get("rank", -1))
    numbers.setdefault("local_size", numbers["size"])
    if "rank" not in numbers:
        raise UsageError(
            f"WORLD_SIZE={numbers['size']} says that there are several processes, but RANK is not set: "
            "start them by torchrun, or unset WORLD_SIZE"
        )
    to = World(**numbers)
    if not (0 <= to.rank < to.size and 0 <= to.local_rank < to.local_size <= to.size):
        raise UsageError(f"{to} cannot be: start the processes by torchrun")
    return to


def mean_(tensor: Tensor) -> Tensor:
    """Makes `tensor` its mean over the processes, in place, and returns it; where any has a value that
    is not finite, all have one."""
    if _world.size > 1:
        sum_(tensor).div_(_world.size)
    return tensor


def sum_(tensor: Tensor) -> Tensor:
    """Makes `tensor` its sum over the processes, in place, and returns it."""
    if _world.size > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def from_first(value: Any) -> Any:
    """What process 0 has, on every process: anything that pickles. All must call it."""
    if _world.size == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def of_all(value: Any) -> list[Any]:
    """What each process has, in the order of ranks. All must call it."""
    if _world.size == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * _world.size
    dist.all_gather_object(found, value)
    return found
