"""Tensors of which each process has a part (DTensor, as FSDP2 makes of parameters), told apart without
importing torch.distributed, which costs every process most of a second."""

from torch import Tensor


def is_shard(tensor: Tensor) -> bool:
    """Whether this is a DTensor."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other as it is."""
    return tensor.to_local() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def full(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on every process; any other as it is. All must call it."""
    return tensor.full_tensor() if is_shard(tensor) else tensor  # type: ignore[attr-defined]
