"""The frozen teacher over several processes: in each, or a share in each (FSDP2 without gradients).

A share for each GPU of a machine: traffic stays within it. A block's weights come before its forward and
go after it, while the next block's are on their way. Nothing of it is there when the student's
activations are, so what is saved at the peak is all but the share.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from eva_fast.layers.sharding import is_sharded
from eva_fast.teachers import Teacher
from eva_fast.train.sharding import mesh_of, units
from eva_fast.world import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard_teacher(teacher: nn.Module, to: World) -> None:
    """Shards a frozen network in place, on its device, over the processes of each machine of `to`."""
    first = next(teacher.parameters(), None)
    if first is not None:
        shard_frozen(teacher_mesh(to, first.device.type), teacher)


def teacher_mesh(to: World, device: str) -> "DeviceMesh":
    """The processes of `to`, in shards within a machine."""
    return mesh_of("hybrid" if to.nodes > 1 else "full", to, device)


def shard_frozen(mesh: "DeviceMesh", teacher: nn.Module) -> None:
    """`shard_teacher` over a mesh that is there. The blocks of a `Teacher` are units of their own; of
    another module nothing is known of who reads what, so it is one unit. Weights in another order than
    their shape's (`channels_last`) stay whole: FSDP2 takes none."""
    from torch.distributed.fsdp import fully_shard

    whole = {p for p in teacher.parameters() if not p.is_contiguous()}
    for unit in units(teacher, frozen=True) if isinstance(teacher, Teacher) else ():
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    fully_shard(teacher, mesh=mesh, reshard_after_forward=True, ignored_params=whole)


@contextlib.contextmanager
def gathered(teacher: nn.Module | None) -> Iterator[None]:
    """For the block each process has all of a teacher, sharded or not, and may call it alone. All must
    enter it."""
    parts: list[Any] = [m for m in teacher.modules() if is_sharded(m)] if teacher else []
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)
