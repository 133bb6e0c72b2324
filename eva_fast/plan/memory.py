"""Memory of one GPU by kind, from counted activations and the arithmetic of optimiser states."""

from dataclasses import dataclass, replace

from eva_fast.errors import UsageError
from eva_fast.model.sizes import ModelSizes, sizes_of
from eva_fast.plan.counter import StepCount, count_step_at
from eva_fast.plan.rates import Device
from eva_fast.plan.roofline import parameter_count

SHARDING = ("none", "optimizer", "full")

# The teacher of EVA-01: CLIP's ViT-L/14 image tower with its projection to 768.
TEACHER = sizes_of("eva_l_patch14_224", predict_dim=768)


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
    activations: int
    """Kept for the backward pass, counted."""
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


def saved_with_checkpoint(formulation: str, sizes: ModelSizes, batch: int, **options) -> int:
    """Bytes kept when every block keeps its input alone and is computed again in the backward:
    the inputs of all blocks, one block's activations, and what surrounds the blocks."""
    thin, thick = (
        count_step_at(formulation, replace(sizes, depth=n), batch, **options) for n in (4, 5)
    )
    block = thick.saved_bytes - thin.saved_bytes
    outside = thin.saved_bytes - 4 * block
    inputs = batch * (sizes.num_patches + 1) * sizes.embed_dim * thin.dtype.itemsize
    return outside + block + sizes.depth * inputs


def estimate(
    count: StepCount,
    device: Device,
    *,
    saved_bytes: int | None = None,
    sharding: str = "none",
    gpus: int = 1,
    teacher: ModelSizes | None = TEACHER,
) -> Memory:
    """Memory of a counted step on one of `gpus` devices.

    sharding: "none" keeps everything everywhere, "optimizer" spreads masters and moments (ZeRO-1),
    "full" weights and gradients too (FSDP: two blocks gathered at a time). `saved_bytes` replaces
    the counted activations, e.g. with checkpointing."""
    if sharding not in SHARDING:
        raise UsageError(f"unknown sharding {sharding!r}: one of {', '.join(SHARDING)}")
    parameters = parameter_count(count.sizes)
    item = count.dtype.itemsize
    states = gpus if sharding != "none" else 1
    whole = gpus if sharding == "full" else 1
    gathered = 0
    if sharding == "full":
        gathered = 2 * parameters // count.sizes.depth * item
    return Memory(
        weights=parameters * item // whole + gathered,
        master=0 if item == 4 else parameters * 4 // states,
        gradients=parameters * item // whole + gathered,
        optimizer=parameters * 8 // states,
        activations=count.saved_bytes if saved_bytes is None else saved_bytes,
        workspace=max(op.bytes for op in count.operators),
        teacher=0 if teacher is None else parameter_count(teacher) * item,
        reserved=device.reserved_bytes,
    )
