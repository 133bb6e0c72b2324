"""FLOPs of the operators a training step runs, the part of the step each belongs to, and how many
device kernels it runs as where that is known to be more than one.

Here are PyTorch's operators; an op of ours says these things itself (`eva_fast.ops.registry`), and
its FLOPs are in PyTorch's own registry of formulas."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from eva_fast.ops import registry

aten = torch.ops.aten

PARTS = (
    *("gemm", "quantise", "attention", "norm", "gelu", "head", "elementwise", "optimizer"),
    "teacher",
)

GEMMS = frozenset({"mm", "addmm", "baddbmm", "linear", "convolution", "convolution_backward"})

# First match wins; a name that matches none is elementwise work.
_PART_BY_WORD = (
    ("attention", "attention"),
    ("softmax", "attention"),
    ("bmm", "attention"),
    ("cosine", "head"),
    ("layer_norm", "norm"),
    ("gelu", "gelu"),
    ("adamw", "optimizer"),
)

# Operators that a GPU runs as several kernels; all others count as one. A gradient of a parameter
# is a row pass and the sum of its partials; flash attention's backward prepares dO.O, computes
# the three gradients and converts dq.
_KERNELS = {
    "native_layer_norm_backward": 2,
    "convolution_backward": 2,
    "_scaled_dot_product_flash_attention_backward": 3,
}


def part_of(name: str) -> str:
    """One of `PARTS` for an operator's name."""
    op = registry.of_operator(name)
    if op is not None:
        return op.part
    if name in GEMMS:
        return "gemm"
    return next((part for word, part in _PART_BY_WORD if word in name), "elementwise")


def kernels(name: str) -> int:
    """Device kernels that a GPU runs an operator as, where known; else 1."""
    op = registry.of_operator(name)
    return op.kernels if op is not None else _KERNELS.get(name, 1)


def bytes_again(name: str, args: tuple, kwargs: dict) -> int:
    """Bytes that an operator reads a second time, where that is known; else 0."""
    op = registry.of_operator(name)
    return op.again(*args, **kwargs) if op is not None and op.again is not None else 0


def _flash(q, k, v, *rest, **options) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _flash_backward(grad, q, k, v, *rest, **options) -> int:
    return sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)


# Operators that PyTorch's registry of formulas does not know, by the dispatcher's name.
FORMULAS: dict[str, Callable[..., int]] = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": _flash,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _flash_backward,
}


def flops(func: torch._ops.OpOverload, args: tuple, kwargs: dict, out: Any) -> int:
    """Floating-point operations of one call: two for each multiply-add of a matrix product."""
    own = FORMULAS.get(func._schema.name)
    if own is not None:
        return own(*args, **kwargs)
    counted = flop_registry.get(func._overloadpacket)
    return 0 if counted is None else int(counted(*args, **kwargs, out_val=out))
