"""The largest magnitude of a tensor, left with it by the kernel that wrote it.

Who quantises a tensor wants its largest magnitude first, and would have to read all of it. The kernel
that writes it has every value at hand: it writes the largest of each program's, a few numbers, and
these stay with the tensor from one autograd function to the next. Of a weight it is the optimiser that
writes them, one for each chunk, beside the new values (`eva_fast.ops.adamw`).

    leave(tensor, parts)        parts: float32 [P], whose largest is that of |tensor|, NaN where one is
    left(tensor)                the parts; None where there are none or the tensor was changed since
    parts_of(tensor)            room for a weight's parts, filled; fill(parts, tensor) fills it again
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from eva_fast.ops import copies

PARTS = 1024
"""At most, where a kernel chooses how many."""
CHUNK = 16384
"""Elements of a weight that have one part."""


class _Left(NamedTuple):
    parts: Tensor
    version: int


def leave(tensor: Tensor, parts: Tensor) -> None:
    """Leaves `parts` with `tensor`; not under torch.compile, which knows of no such thing."""
    if not torch.compiler.is_compiling():
        tensor.largest = _Left(parts, tensor._version)  # type: ignore[attr-defined]


def left(tensor: Tensor) -> Tensor | None:
    """What was left with `tensor`. A sum of gradients is another tensor, or one that was changed."""
    found: _Left | None = getattr(tensor, "largest", None)
    return found.parts if found is not None and found.version == tensor._version else None


def parts_of(parameter: Tensor) -> Tensor:
    """Parts of a parameter as it is now, one for each CHUNK elements."""
    parts = parameter.new_empty(-(-parameter.numel() // CHUNK), dtype=torch.float32)
    fill(parts, parameter)
    return parts


@torch.no_grad()
def fill(parts: Tensor, parameter: Tensor) -> None:
    """Writes the parts of `parameter` as it is now, and notes that (`eva_fast.ops.copies`)."""
    write(parts, parameter)
    copies.mark(parts, parameter)


def write(parts: Tensor, tensor: Tensor) -> None:
    """The largest magnitude of each CHUNK elements of a contiguous tensor."""
    flat = tensor.detach().reshape(-1)
    chunks = pad(flat, (0, len(parts) * CHUNK - len(flat))).view(-1, CHUNK)
    parts.copy_(torch.linalg.vector_norm(chunks, torch.inf, 1) if len(parts) else parts)
