"""A real step of a sharded run on fake tensors: what each of many GPUs would hold and send.

Module, sharding, optimiser and step are the run's own; tensors have shapes and no values, and the
process group is one process that stands for all (torch's FakeTensorMode, fake process group and
FSDPMemTracker). So memory and traffic are counted, not estimated, on any machine. Not in it: what the
allocator loses, workspaces of libraries and NCCL's buffers, a few GB, and the teacher's activations.
"""

import contextlib
import copy
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from eva_fast import world
from eva_fast.config import Config
from eva_fast.data import Batch
from eva_fast.errors import UsageError
from eva_fast.ops.packed_attention import keeping_output
from eva_fast.ops.shards import local
from eva_fast.planning.run import PlannedRun
from eva_fast.train.sharding import mesh_of, shard_over, usual
from eva_fast.train.state import TrainState
from eva_fast.train.step import TrainStep
from eva_fast.train.teacher_sharding import gathered, shard_frozen, teacher_mesh

log = logging.getLogger(__name__)
CPU = torch.device("cpu")
GPUS_PER_NODE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulation:
    """What one of `gpus` processes holds at most in a step, and sends."""

    gpus: int
    sharding: str
    images: int
    """Of a micro-batch on one GPU."""
    parameters: int
    memory: dict[str, int]
    """Bytes at the peak, by what they are; `total` is their sum."""
    communication: dict[str, dict[str, int]]
    """{"collective over N GPUs": {"calls", "bytes"}} of a step."""
    seconds: float
    """What the simulation took."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        names = ("gpus", "sharding", "images", "parameters", "memory", "communication", "seconds")
        return {name: getattr(self, name) for name in names}

    def table(self) -> Table:
        """For a terminal."""
        title = f"one of {self.gpus} GPUs, sharding {self.sharding}, {self.images} images a pass"
        table = Table("counted", "GB", "calls", title=title)
        for name, size in self.memory.items():
            table.add_row(name, f"{size / 1e9:.2f}", "")
        for name, found in self.communication.items():
            table.add_row(name, f"{found['bytes'] / 1e9:.2f}", str(found["calls"]))
        return table


def simulate(
    config: Config, gpus: int, dtype: torch.dtype, per_node: int = GPUS_PER_NODE
) -> Simulation:
    """Two steps of the run of `config` as process 0 of `gpus` has them, the second one counted; of
    several micro-batches the traffic in one more.

    dtype: of the blocks' products. per_node: GPUs of a machine. UsageError for options that do not fit
    together, and where torch.distributed is in use."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise UsageError("a simulation needs a process without torch.distributed's groups")
    if gpus < 2:
        raise UsageError("a simulation is of several GPUs: give gpus of at least 2")
    start = time.perf_counter()
    parts = config.optim.accumulate
    share = config.optim.batch_size // gpus // parts
    to = world.World(0, gpus, 0, min(gpus, per_node))
    run = PlannedRun.of(config, dtype, "cuda")
    module = run.build(config.run.grad_checkpointing_share * config.run.grad_checkpointing)
    parameters = sum(p.numel() for p in module.parameters())
    asked = config.run.sharding
    chosen = usual(parameters, to.nodes) if asked == "auto" else asked
    dist.init_process_group("fake", rank=0, world_size=gpus, store=FakeStore())
    try:
        with world.joined(to), keeping_output(), _propagation_hidden():
            mesh = mesh_of(chosen, to, "cpu")  # not inside the mode: it reads values
            memory, sent = _counted(run, module, mesh, chosen, share, parts)
            if run.teacher is not None:
                memory["teacher"] = _teacher(run.teacher.module, to, config, sent)
    finally:
        dist.destroy_process_group()
    memory["total"] = memory.pop("total") + memory.get("teacher", 0)  # last
    return Simulation(
        gpus=gpus, sharding=chosen, images=share, parameters=parameters, memory=memory,
        communication=sent, seconds=round(time.perf_counter() - start, 1),
    )  # fmt: skip


def _counted(
    run: PlannedRun, module: torch.nn.Module, mesh: Any, chosen: str, share: int, parts: int
) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """(bytes at the peak of a step by kind, traffic of a step by collective)."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker

    with FakeTensorMode(allow_non_fake_inputs=True):
        module.to_empty(device=CPU)
        setting = replace(run.setting, device=CPU)
        whole = shard_over(mesh, run.objective, module, chosen, setting.compute_dtype)
        state = TrainState.begin(setting, run.objective, module, None, None, whole)
        target, clip = _fake(run.target(share)), setting.config.optim.clip_grad

        def step_of(parts: int) -> Callable[[], object]:
            batch = Batch({name: _fake(t) for name, t in run.batch(share * parts).items()})
            step = TrainStep(
                state, run.objective, lambda _: target, clip_grad=clip, accumulate=parts
            )
            return lambda: step(batch, 1e-3)

        one, all_parts = step_of(1), step_of(parts)
        tracker = FSDPMemTracker(whole, state.optimizer)
        with tracker:
            one()
            tracker.reset_mod_stats()
            with _Traffic() as traffic:
                one()
        (peak,) = tracker.get_tracker_snapshot("peak").values()
        if parts > 1:  # the tracker knows steps of one micro-batch; a second holds no more
            with _Traffic() as traffic:
                all_parts()
    named = {str(getattr(kind, "value", kind)).lower(): int(size) for kind, size in peak.items()}
    return {kind: size for kind, size in named.items() if size}, traffic.found()


def _teacher(
    teacher: torch.nn.Module, to: world.World, config: Config, sent: dict[str, dict[str, int]]
) -> int:
    """Bytes of a teacher's weights on a process. What a pass gathers of them, where it is in shards, is
    added to `sent`."""
    if config.run.teacher_sharding == "replicate":
        return sum(p.nbytes for p in teacher.parameters())
    from torch._subclasses.fake_tensor import FakeTensorMode

    mesh, teacher = teacher_mesh(to, "cpu"), copy.deepcopy(teacher)
    with FakeTensorMode(allow_non_fake_inputs=True):
        shard_frozen(mesh, teacher.to_empty(device=CPU))
        with _Traffic() as traffic, gathered(teacher):
            pass
        held = sum(local(p).nbytes for p in teacher.parameters())
    for name, found in traffic.found().items():
        before = sent.setdefault(name, {"calls": 0, "bytes": 0})
        passes = config.optim.accumulate
        sent[name] = {key: before[key] + passes * found[key] for key in found}
    return held


def _fake(value: Any) -> Any:
    """As `value`, on the CPU and without values."""
    return torch.empty(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value


class _Traffic(TorchDispatchMode):
    """Counts what collectives move."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        from torch.distributed._tools.fake_collectives import (
            CollectiveOp,
            collective_ops,
            sync_ops,
        )

        result = func(*args, **(kwargs or {}))
        if func in collective_ops and func not in sync_ops:
            group = CollectiveOp.get_process_group(func, args).size()
            kind = str(func).split(".")[1].strip("_").removesuffix("_base")
            name = f"{kind} over {group} GPUs"
            self.calls[name] += 1
            self.bytes[name] += CollectiveOp.get_comm_tensor_size(func, result, args, kwargs)
        return result

    def found(self) -> dict[str, dict[str, int]]:
        return {n: {"calls": self.calls[n], "bytes": self.bytes[n]} for n in sorted(self.calls)}


@contextlib.contextmanager
def _propagation_hidden() -> Iterator[None]:
    """DTensor finds shapes by running operators on whole tensors; a tracker would count those."""
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    name = "_propagate_tensor_meta_non_cached"
    own = getattr(ShardingPropagator, name, None)
    if own is None:  # another torch: its optimiser's memory is then counted too high
        log.warning("this torch's DTensor is another: memory may be counted too high")
        yield
        return

    def hidden(self: Any, schema: Any) -> Any:
        with _disable_current_modes():
            return own(self, schema)

    setattr(ShardingPropagator, name, hidden)
    try:
        yield
    finally:
        setattr(ShardingPropagator, name, own)
