"""Checks at an op's door, and the views its implementations work on.

A bad argument is one ValueError that names the op, the argument, what it is and what it must be.
"""

from collections.abc import Sequence

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check(
    op: str,
    name: str,
    tensor: torch.Tensor,
    *,
    shape: Sequence[int | None] | None = None,
    dtypes: Sequence[torch.dtype] = FLOATS,
    like: torch.Tensor | None = None,
) -> None:
    """Raises ValueError unless `tensor` fits.

    shape: expected sizes, None for any; dtypes: allowed ones; like: a tensor whose device it must
    share. The last dimension must be dense (stride 1); all other strides are free.
    """
    if shape is not None:
        got = tuple(tensor.shape)
        if len(got) != len(shape) or any(s is not None and s != g for s, g in zip(shape, got)):
            want = "(" + ", ".join("*" if s is None else str(s) for s in shape) + ")"
            raise ValueError(f"{op}: {name} has shape {got}, expected {want}")
    if tensor.dtype not in dtypes:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise ValueError(f"{op}: {name} has dtype {tensor.dtype}, expected {allowed}")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{op}: {name} is on device {tensor.device}, expected {like.device}")
    if tensor.dim() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(
            f"{op}: {name} has strides {tuple(tensor.stride())}, expected stride 1 in the last "
            "dimension (call .contiguous())"
        )


def check_constant(op: str, name: str, tensor: torch.Tensor | None) -> None:
    """Raises ValueError if a gradient would be wanted for an argument that has none."""
    if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{op}: {name} requires grad, but is a constant of the op: detach it")


def rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as [M, D], M the product of the leading sizes.

    A view wherever one row stride describes it, else a copy; the last stride is 1.
    """
    return dense_last(tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() != 2 else tensor)


def dense_last(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied only if its last stride is not 1 (an expanded gradient, say)."""
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        return tensor.contiguous()
    return tensor


def statistics_dtype(tensor: torch.Tensor) -> torch.dtype:
    """float32 for everything that runs in kernels; float64 stays what it is."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def nothing(tensor: torch.Tensor) -> torch.Tensor:
    """The empty tensor that stands for an output nobody asked for."""
    return tensor.new_empty((0,))
