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
    return dense_last(tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1]))


def dense_rows(*tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Tensors [..., D] of one shape, or None: as they are where all are contiguous, which saves the
    host the views; else as `rows` has them."""
    for tensor in tensors:
        if tensor is not None and not tensor.is_contiguous():
            return tuple(None if t is None else rows(t) for t in tensors)
    return tensors


def row_stride(tensor: torch.Tensor | None) -> int:
    """From row to row of what `rows` or `dense_rows` gave; 0 for None."""
    if tensor is None:
        return 0
    return tensor.stride(0) if tensor.dim() == 2 else tensor.shape[-1]


def as_shaped(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Contiguous rows that nobody else holds, as many as those of `like` [..., D], in its shape but for
    the last dimension; not marked as a view."""
    return rows if like.dim() == rows.dim() else own_view(rows, *like.shape[:-1], rows.shape[-1])


def own_view(tensor: torch.Tensor, *shape: int) -> torch.Tensor:
    """A tensor in another shape, for one that nobody else holds: not marked as a view of it, for FSDP2
    warns of views that leave a unit."""
    return torch.ops.aten._unsafe_view.default(tensor, shape)


def contiguous_like(tensor: torch.Tensor) -> torch.Tensor:
    """Room for as many elements, contiguous. `new_empty(shape)` costs the host twice as much: it
    turns a shape into a list of sizes one by one."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


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
    return tensor.new_empty(0)
