"""What layers must know of FSDP2 (`torch.distributed.fsdp.fully_shard`)."""

from torch import nn


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` made this module a unit, whose parameters come before its forward and go
    after it. Told by what it adds to a unit's class: asking for the class itself would cost every
    process the import of torch.distributed.fsdp, most of a second."""
    return hasattr(type(module), "set_requires_gradient_sync")
