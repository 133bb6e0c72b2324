"""FLOPs of the operators a training step runs, the part of the step each belongs to, and how many
device kernels it runs as where that is known to be more than one."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten

PARTS = ("gemm", "attention", "norm", "gelu", "head", "elementwise", "optimizer", "teacher")

GEMMS = frozenset(
    {"mm", "addmm", "baddbmm", "linear", "convolution", "convolution_backward", "eva_fast::gemm"}
)

# First match wins; a name that matches none is elementwise work.
_PART_BY_WORD = (
    ("attention", "attention"),
    ("softmax", "attention"),
    ("bmm", "attention"),
    ("project", "head"),
    ("head", "head"),
    ("cosine", "head"),
    ("layer_norm", "norm"),
    ("gelu", "gelu"),
    ("adamw", "optimizer"),
)

# Operators that a GPU runs as several kernels; all others count as one. A gradient of a parameter
# is a row pass and the sum of its partials; flash attention's backward prepares dO.O, computes
# the three gradients and converts dq.
KERNELS = {
    "native_layer_norm_backward": 2,
    "convolution_backward": 2,
    "_scaled_dot_product_flash_attention_backward": 3,
    "eva_fast::packed_attention_backward": 3,
    "eva_fast::add_layer_norm_backward": 2,
    "eva_fast::bias_gelu_backward": 2,
    "eva_fast::negative_cosine": 2,
}


def part_of(name: str) -> str:
    """One of `PARTS` for an operator's name."""
    if name in GEMMS:
        return "gemm"
    return next((part for word, part in _PART_BY_WORD if word in name), "elementwise")


def _flash(q, k, v, *rest, **options) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _flash_backward(grad, q, k, v, *rest, **options) -> int:
    return sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)


def _gemm(a, b, *rest, **options) -> int:
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


def _project(x, mask, ln_w, ln_b, weight, *rest, **options) -> int:
    rows = x.shape[:-1].numel() if mask is None else mask.numel()
    return 2 * rows * weight.shape[0] * weight.shape[1]


def _project_backward(grad, x, mask, ln_w, ln_b, weight, *rest, **options) -> int:
    """Gradients of the rows and of the weight."""
    return 2 * _project(x, mask, ln_w, ln_b, weight)


def _head_backward(grad, x, mask, ln_w, ln_b, weight, *rest, **options) -> int:
    """As the projection's, and the predictions once more."""
    return 3 * _project(x, mask, ln_w, ln_b, weight)


# Operators that PyTorch's registry of formulas does not know, by the dispatcher's name.
FORMULAS: dict[str, Callable[..., int]] = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": _flash,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _flash_backward,
    "eva_fast::gemm": _gemm,
    "eva_fast::layer_norm_project": _project,
    "eva_fast::layer_norm_project_backward": _project_backward,
    "eva_fast::masked_cosine_head": _project,
    "eva_fast::masked_cosine_head_backward": _head_backward,
}


def flops(func: torch._ops.OpOverload, args: tuple, kwargs: dict, out: Any) -> int:
    """Floating-point operations of one call: two for each multiply-add of a matrix product."""
    own = FORMULAS.get(func._schema.name)
    if own is not None:
        return own(*args, **kwargs)
    counted = flop_registry.get(func._overloadpacket)
    return 0 if counted is None else int(counted(*args, **kwargs, out_val=out))
