"""Copies of parameters in the dtype that products read, and whether they still are that.

A 16-bit step keeps float32 parameters and multiplies by rounded copies of them. Rounding once a
step is cheap, and nothing at all where the optimiser writes the copy in its own pass; but a copy
must never outlive its parameter's value. So a copy remembers which state of which parameter it
holds: PyTorch counts the in-place changes of a tensor (`Tensor._version`), and whoever writes the
copy notes that count.

    write(copy, parameter)           rounds the parameter into the copy and notes it
    mark(copy, parameter)            notes a first time: something else wrote the copy
    note(copy, parameter)            only notes: an op wrote the copy already
    is_current(copy, parameter)      whether the copy holds this parameter as it is now

What the count misses: changes through `parameter.data` that keep its memory, and torch's own
optimisers with `fused=True`, which do not count. `parameter.data = other` is seen.
"""

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


@dataclass(slots=True)
class _Source:
    """The parameter in a copy, the memory it had, and how often it had been changed."""

    parameter: weakref.ref
    storage: StorageWeakRef
    """Weak: the memory may go, but its identity is not given to another while this lives."""
    version: int


@torch.no_grad()
def write(copy: Tensor, parameter: Tensor) -> Tensor:
    """Rounds `parameter` into `copy`, of the same shape, and returns it."""
    copy.copy_(parameter)
    mark(copy, parameter)
    return copy


def mark(copy: Tensor, parameter: Tensor) -> None:
    """Notes that `copy`, whoever wrote it first, holds `parameter` as it is now."""
    storage = StorageWeakRef(parameter.untyped_storage())
    copy.source = _Source(weakref.ref(parameter), storage, parameter._version)  # type: ignore[attr-defined]


def note(copy: Tensor, parameter: Tensor) -> None:
    """Notes that `copy`, once written by `write`, holds `parameter` as it is now."""
    copy.source.version = parameter._version  # type: ignore[attr-defined]


def is_copy_of(copy: Tensor, parameter: Tensor) -> bool:
    """Whether `copy` was written from this very parameter, whatever has become of it since."""
    return copy.source.parameter() is parameter  # type: ignore[attr-defined]


def is_current(copy: Tensor, parameter: Tensor) -> bool:
    """Whether `copy` was written by `write` and holds `parameter` as it is now."""
    source: _Source | None = getattr(copy, "source", None)
    return (
        source is not None
        and source.version == parameter._version
        and source.parameter() is parameter
        and source.storage.cdata == parameter.untyped_storage()._cdata
    )
