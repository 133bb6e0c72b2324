"""Several processes as one run: how they find each other, agree, and end.

torchrun starts them; each takes its share of every batch. What is decided on a host, as to stop or to
write a checkpoint, is decided by all alike, a step after one of them wished it.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from eva_fast import world
from eva_fast.errors import RunError, UsageError, first_line
from eva_fast.train.meeting import agent_store
from eva_fast.world import World

if TYPE_CHECKING:
    from eva_fast.config import Config

log = logging.getLogger(__name__)
GONE = (
    "another process of the run has ended or does not answer, so this one ends too; the last checkpoint "
    "is whole, and resume='auto' goes on from it ({})"
)


def check_processes(config: "Config", to: World) -> None:
    """ValueError for what several processes cannot do."""
    optim, run = config.optim, config.run
    share = to.size * optim.accumulate
    if optim.batch_size % share:
        raise UsageError(
            f"batch_size {optim.batch_size} is that of all processes, and is not a multiple of "
            f"{to.size} processes" + (f" x accumulate {optim.accumulate}" * (optim.accumulate > 1))
        )
    if to.size > 1 and run.graph == "on":
        raise UsageError("graph='on' is for one process: leave graph at 'auto'")
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") or 0)
    if to.size > 1 and restarts and run.out is None:
        raise UsageError(
            "with torchrun --max-restarts a run needs out=, the folder in which it goes on"
        )


def going_on(config: "Config") -> "Config":
    """The options of processes that torchrun started anew, after one had ended: the run goes on."""
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") or 0) == 0:
        return config
    return replace(config, run=replace(config.run, resume="auto"))


@contextlib.contextmanager
def joined(to: World, device: torch.device, minutes: float) -> Iterator[None]:
    """For the block the processes are joined; nothing for one alone. A process that does not answer
    for `minutes` ends the others with an error."""
    if to.size == 1:
        yield
        return
    import torch.distributed as dist

    timeout = timedelta(minutes=minutes)
    foreign = dist.is_initialized()
    if foreign:
        _check_group(dist, to)
    else:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        bound = device if device.type == "cuda" else None
        store = agent_store(to, timeout)
        rank, size = (-1, -1) if store is None else (to.rank, to.size)  # -1: as torchrun says
        dist.init_process_group(
            backend, timeout=timeout, device_id=bound, store=store, rank=rank, world_size=size
        )
    try:
        with world.joined(to, timeout):
            yield
    except RuntimeError as error:
        if isinstance(error, RunError) or not _is_exchange(dist, error):
            raise
        raise RunError(GONE.format(first_line(error))) from error
    finally:
        if not foreign and dist.is_initialized():
            dist.destroy_process_group()


def _is_exchange(dist: Any, error: RuntimeError) -> bool:
    """Whether it is of an exchange that failed, which gloo gives no class of its own."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _check_group(dist: Any, to: World) -> None:
    found = dist.get_rank(), dist.get_world_size()
    if found != (to.rank, to.size):
        raise UsageError(
            f"torch.distributed says process {found[0]} of {found[1]}, the environment {to.rank} of "
            f"{to.size}: start the processes by torchrun"
        )


class Agreement:
    """What any process wishes, all do, one step later: on the host, beside the step.

    In one process a wish is granted at once. wishes: small numbers of at least 0; the largest of each
    is what comes back.
    """

    def __init__(self) -> None:
        self.waited = 0.0
        """Seconds that this process waited for others: little on the slowest, most on the fastest."""
        self._group = world.host_group()
        self._pending: Any = None

    def __call__(self, *wishes: int) -> tuple[int, ...]:
        if self._group is None:
            return wishes
        import torch.distributed as dist

        found = self.settle() or (0,) * len(wishes)
        flags = torch.tensor(wishes, dtype=torch.int64)
        work = dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = work, flags
        return found

    def settle(self) -> tuple[int, ...] | None:
        """What was wished a step ago; None where nothing is open. RunError where a process is gone."""
        if self._pending is None:
            return None
        (work, flags), self._pending = self._pending, None
        start = time.perf_counter()
        try:
            work.wait()
        except RuntimeError as error:
            raise RunError(GONE.format(first_line(error))) from error
        self.waited += time.perf_counter() - start
        return tuple(flags.tolist())
