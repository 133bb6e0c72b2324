"""What one library's block is to `accelerate`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from eva_fast.acceleration.anatomy import Anatomy


def _nothing(given: Any) -> None:
    return None


def _never(block: Any, owners: Sequence[nn.Module]) -> None:
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How blocks of a class are read and called."""

    names: tuple[str, ...]
    """Of the classes, with their modules."""
    read: Callable[[Any], Anatomy | str]
    """A block as an `Anatomy`; words where it is not built as this family's are."""
    forward: Callable[..., Any]
    """What becomes the forward of the accelerated class."""
    own: Callable[[Any, Tensor], Tensor]
    """The library's forward of a block of its own class, on tokens alone."""
    called_with: Callable[[Any, Sequence[nn.Module]], str | None] = _never
    """Why attention is left at every call, from a block and the networks around it, the innermost first;
    None: it is not."""
    prepare: Callable[[Any], Any] = _nothing
    """Makes a copy of a block, which is given, one that runs on a CPU in float64."""
