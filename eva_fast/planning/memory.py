"""Memory of one GPU by kind, from counted activations and the arithmetic of optimiser states."""

from dataclasses import dataclass, replace

from eva_fast.errors import UsageError
from eva_fast.model.sizes import ModelSizes
from eva_fast.planning.count import StepCount
from eva_fast.planning.counter import count_step_at
from eva_fast.planning.rates import Device, wide

SHARDING = ("replicate", "zero2", "full", "hybrid")
GATHERS = ("full", "hybrid")
"""Weights come before a block and go after it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on one GPU at the peak of a step."""

    weights: int
    """What the forward reads: in 16 bit, or float32 where that is the compute dtype."""
    master: int
    """Float32 copies that the optimiser updates; none when the weights are float32."""
    gradients: int
    optimizer: int
    """Both AdamW moments in float32."""
    ema: int
    """The moving average of the weights in float32, where there is one."""
    activations: int
    """Kept for the backward pass, counted."""
    recomputed: int
    """What a checkpointed block computes again in its backward, counted."""
    workspace: int
    """What the largest operator reads and writes beside them."""
    teacher: int
    """The teacher's weights in 16 bit."""
    reserved: int
    """Context, libraries and fragmentation: assumed."""

    @property
    def total(self) -> int:
        return sum(self.by_kind().values())

    def by_kind(self) -> dict[str, int]:
        """Bytes by kind, in order."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def block_bytes(formulation: str, sizes: ModelSizes, batch: int, **options) -> int:
    """Bytes that one block keeps for the backward: what a checkpointed one keeps for the time of its
    own backward."""
    thin, thick = (
        count_step_at(formulation, replace(sizes, depth=n), batch, **options) for n in (4, 5)
    )
    return thick.saved_bytes - thin.saved_bytes


def estimate(
    count: StepCount,
    device: Device,
    *,
    recomputed: int = 0,
    sharding: str = "replicate",
    gpus: int = 1,
    teacher: int = 0,
    ema: bool = False,
) -> Memory:
    """Memory of a counted step on one of `gpus` devices.

    sharding: "replicate" keeps everything everywhere, "zero2" spreads gradients, masters and moments,
    "full" weights too (two blocks gathered at a time), "hybrid" that within a machine.
    recomputed: bytes of the block that is computed again. teacher: bytes of its weights. ema: whether
    weights are averaged."""
    if sharding not in SHARDING:
        raise UsageError(f"unknown sharding {sharding!r}: one of {', '.join(SHARDING)}")
    parameters = count.parameters
    item = wide(count.dtype).itemsize  # 8-bit weights are kept by rows and by columns
    group = min(gpus, device.gpus_per_node) if sharding == "hybrid" else gpus
    states = 1 if sharding == "replicate" else group
    whole = group if sharding in GATHERS else 1
    gathered = 0
    if sharding in GATHERS:
        gathered = 2 * parameters // count.sizes.depth * item
    return Memory(
        weights=parameters * item // whole + gathered,
        master=0 if item == 4 else parameters * 4 // states,
        gradients=parameters * item // states + (gathered if whole == states else 0),
        optimizer=parameters * 8 // states,
        ema=parameters * 4 // states if ema else 0,
        activations=count.saved_bytes,
        recomputed=recomputed,
        workspace=max(op.bytes for op in count.operators),
        teacher=teacher,
        reserved=device.reserved_bytes,
    )
