"""What has been done to a network already, and comes after `accelerate`."""

from torch import jit, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

QUANTISED = (
    "torch.ao.nn.quantized", "torch.ao.nn.qat", "torch.nn.quantized", "bitsandbytes", "torchao",
    "optimum.quanto", "auto_gptq", "awq",
)  # fmt: skip
"""Packages whose linear layers hold their weights in fewer bits."""


def obstacle(model: nn.Module) -> str | None:
    """Why the blocks of this network cannot be changed any more; None where nothing is in the way.

    DataParallel and DistributedDataParallel are no obstacle: the network in them stays the object that
    it is."""
    for name, module in model.named_modules():
        where = f"{name!r} of the network" if name else "the network"
        kind = type(module)
        if kind.__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
            return f"{where} is compiled: call accelerate before torch.compile"
        if isinstance(module, jit.ScriptModule):
            return (
                f"{where} is TorchScript, whose code is fixed: accelerate the module it was made of"
            )
        if isinstance(module, FullyShardedDataParallel | FSDPModule):
            return f"{where} is sharded: call accelerate before FSDP"
        if kind.__module__.startswith(QUANTISED):
            return (
                f"{where} is quantised ({kind.__module__}.{kind.__qualname__}), and the fused layers "
                "multiply floats: accelerate the network as it was before, or leave it quantised alone"
            )
        for own, value in module.named_parameters(recurse=False):
            if isinstance(value, DTensor):
                return f"{where} is sharded: call accelerate before its {own!r} becomes a DTensor"
            if not value.is_floating_point():
                return f"{where} is quantised: its {own!r} is {value.dtype}, and not of floats"
    return None
