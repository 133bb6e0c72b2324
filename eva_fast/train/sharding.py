"""The module over several processes: FSDP2 (Zhao et al. 2023; torch.distributed.fsdp) in every case.

    replicate   each process holds all; gradients are averaged (what DDP does)
    zero2       shards of gradients and optimiser; weights stay gathered from forward to backward
    full        weights come before a block and go after it
    hybrid      full within a machine, replicate between machines

Blocks are units of their own, so that gathering the next one overlaps with computing this one. The
rest is one unit more, around the objective's loss, so that an objective may call its module as it
likes. Arithmetic is in the run's dtype, master weights and the averages of gradients in float32.
"""

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eva_fast.ops.shards import full
from eva_fast.world import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from eva_fast.objectives.base import Objective

log = logging.getLogger(__name__)

SMALL = 4e9
"""Bytes of weights, gradients and moments up to which a process may hold all of them by itself."""
BYTES_A_PARAMETER = 16


class Whole(nn.Module):
    """The loss of an objective as one module: what is sharded and called.

    keeps: whether weights stay gathered until the end of a step."""

    def __init__(self, objective: "Objective", module: nn.Module, keeps: bool):
        super().__init__()
        self.objective, self.module, self.keeps = objective, module, keeps

    def forward(self, batch: Any, target: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective.loss(self.module, batch, target)

    def begin(self, last: bool) -> None:
        """Before a micro-batch: only with the last one of a step gradients leave the process, and
        weights that stay gathered go."""
        sharded: Any = self
        sharded.set_requires_gradient_sync(last)
        if self.keeps:
            sharded.set_reshard_after_backward(last)


def shard(
    objective: "Objective", module: nn.Module, to: World, sharding: str, dtype: torch.dtype
) -> Whole:
    """Shards `module` in place, on its device, over the processes of `to`, and returns what gives the
    loss. sharding: as above, or "auto"."""
    chosen = _usual(module, to) if sharding == "auto" else sharding
    mesh = mesh_of(chosen, to, next(module.parameters()).device.type)
    log.info("%d processes, sharding %s", to.size, chosen)
    return shard_over(mesh, objective, module, chosen, dtype)


def mesh_of(sharding: str, to: World, device: str) -> "DeviceMesh":
    """The processes of `to` as the form of sharding has them."""
    from torch.distributed.device_mesh import init_device_mesh

    shape = {"replicate": (to.size, 1), "hybrid": (to.nodes, to.size // to.nodes)}.get(sharding)
    names = ("replicate", "shard") if shape else ("shard",)
    return init_device_mesh(device, shape or (to.size,), mesh_dim_names=names)


def shard_over(
    mesh: "DeviceMesh", objective: "Objective", module: nn.Module, chosen: str, dtype: torch.dtype
) -> Whole:
    """`shard` over a mesh that is there."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    low, keeps = None if dtype == torch.float32 else dtype, chosen in ("replicate", "zero2")
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False
        ),
        "reshard_after_forward": not keeps,
    }
    for unit in units(module):
        fully_shard(unit, **options)
    whole = Whole(objective, module, keeps)
    fully_shard(whole, **options)
    return whole


def usual(parameters: int, nodes: int) -> str:
    """replicate where all of the state is small, hybrid beyond one machine, else full."""
    if parameters * BYTES_A_PARAMETER <= SMALL:
        return "replicate"
    return "hybrid" if nodes > 1 else "full"


def _usual(module: nn.Module, to: World) -> str:
    return usual(sum(p.numel() for p in module.parameters()), to.nodes)


def units(module: nn.Module, frozen: bool = False) -> list[nn.Module]:
    """The blocks: modules in the innermost lists, which read their own parameters alone. Those that
    train, or all with parameters of a `frozen` module."""
    lists: list[Any] = [m for m in module.modules() if _is_list(m)]
    inner = [m for m in lists if not any(_is_list(n) for n in _below(m))]
    return [
        block
        for found in inner
        for block in found
        if any(p.requires_grad or frozen for p in block.parameters())
    ]


def _is_list(module: nn.Module) -> bool:
    """Whether this holds blocks: a list, or a sequence of modules that know activation checkpointing, as
    timm's ViTs have them."""
    if isinstance(module, nn.Sequential):
        return len(module) > 0 and all(hasattr(block, "recompute") for block in module)
    return isinstance(module, nn.ModuleList)


def _below(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if m is not module]


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a sharded module, put together on every process, on the CPU."""
    return {name: full(value.detach()).cpu() for name, value in module.state_dict().items()}
