"""The global norm of gradients, by which they are clipped.

    norm = sqrt(sum over tensors, sum over elements of g^2)        Pascanu et al. 2013

in float32 throughout. Plain PyTorch takes the norm of each tensor, lays these side by side and takes
their norm; the kernels read all gradients in one launch, through the tables that `adamw` uses.

An implementation gets the list of gradients, at least one of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from eva_fast.ops.checks import FLOATS
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import unwatched
from eva_fast.ops.registry import define

__all__ = ["gradient_norm"]
_NAME = "gradient_norm"
_DTYPES = (*FLOATS, torch.float64)


def _statistics(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def reference(grads: Sequence[Tensor]) -> Tensor:
    """`gradient_norm` in plain PyTorch, tensor by tensor."""
    dtype = _statistics(grads[0].dtype)
    return torch.stack([g.to(dtype).square().sum() for g in grads]).sum().sqrt()


def _norm_torch(grads: list[Tensor]) -> Tensor:
    """What `torch.nn.utils.get_total_norm` does, without its search for groups of like tensors."""
    dtype = _statistics(grads[0].dtype)
    wider = () if grads[0].dtype == dtype else (2, dtype)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, *wider)))


def _norm(grads: Sequence[Tensor]) -> Tensor:
    return chosen(OP, grads[0])(grads)


_norm_op = torch.library.custom_op(f"eva_fast::{_NAME}", mutates_args=())(_norm)


@_norm_op.register_fake
def _(grads):
    return grads[0].new_empty((), dtype=_statistics(grads[0].dtype))


def gradient_norm(grads: Sequence[Tensor]) -> Tensor:
    """Euclidean length of all tensors together, float32 [] (float64 of float64) on their device.

    grads: floating point tensors of any shapes, at least one, of one dtype and device. Not
    differentiable. NaN or infinite where a value is, or where a square is beyond float32 (values above
    1.8e19). ValueError naming what does not fit.
    """
    if not grads:
        raise ValueError(f"{_NAME}: grads is empty, expected at least one tensor")
    first = grads[0]
    for i, g in enumerate(grads):
        if g.dtype not in _DTYPES or g.dtype != first.dtype:
            names = ", ".join(str(d).removeprefix("torch.") for d in _DTYPES)
            raise ValueError(
                f"{_NAME}: grads[{i}] has dtype {g.dtype}, expected one of {names} for all"
            )
        if g.device != first.device:
            raise ValueError(f"{_NAME}: grads[{i}] is on {g.device}, expected {first.device}")
    return gradient_norm_unchecked(list(grads))


def gradient_norm_unchecked(grads: list[Tensor]) -> Tensor:
    """`gradient_norm` without the checks."""
    return (_norm if unwatched(grads[0]) else _norm_op)(grads)


OP = define(_NAME, part="optimizer", reference=reference, plain=_norm_torch, kernels=2)
gradient_norm.reference = reference  # type: ignore[attr-defined]
