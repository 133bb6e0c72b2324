"""The largest magnitude of a tensor, left with it by the kernel that wrote it.

Who quantises a tensor wants its largest magnitude first, and would have to read all of it. The kernel
that writes it has every value at hand: it writes the largest of each program's, a few numbers, and
these stay with the tensor from one autograd function to the next.

    leave(tensor, parts)        parts: float32 [P], whose largest is that of |tensor|, NaN where one is
    left(tensor)                the parts; None where there are none or the tensor was changed since
"""

from typing import NamedTuple

from torch import Tensor

from eva_fast.ops.direct import direct

PARTS = 1024
"""At most, where a kernel chooses how many."""


class _Left(NamedTuple):
    parts: Tensor
    version: int


def leave(tensor: Tensor, parts: Tensor) -> None:
    """Leaves `parts` with `tensor`, in a plain eager step: who traces one sees no such thing."""
    if direct(tensor):
        tensor.largest = _Left(parts, tensor._version)  # type: ignore[attr-defined]


def left(tensor: Tensor) -> Tensor | None:
    """What was left with `tensor`. A sum of gradients is another tensor, or one that was changed."""
    found: _Left | None = getattr(tensor, "largest", None)
    return found.parts if found is not None and found.version == tensor._version else None
