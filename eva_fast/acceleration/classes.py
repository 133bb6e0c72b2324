"""The class of a block whose forward is fused: a subclass of its library's class, by the same name.

The object stays, with its parameters, buffers, hooks and names; only `__class__` changes. Libraries that
ask `isinstance`, or for the class's name (which layers to shard, whose output to record), find what they
look for. Copies and pickles are accelerated too: a pickle names the library's class and is read wherever
eva_fast is installed.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

MARK = "_eva_fast_original"
"""The attribute of the new class that holds the library's."""


def original_class(block: nn.Module) -> type[nn.Module]:
    """The library's class of a block; its own where it is not changed."""
    return getattr(type(block), MARK, type(block))


def is_accelerated(module: nn.Module) -> bool:
    """Whether its forward is fused already."""
    return hasattr(type(module), MARK)


def accelerated_class(original: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    """The subclass of `original` whose forward is `forward`, always the same one."""
    kind = _made.get((original, forward))
    if kind is None:
        kind = _made[original, forward] = _make(original, forward)
    return kind


_made: dict[tuple[Any, Any], type[nn.Module]] = {}


def _make(original: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        reduced: Any = original.__reduce_ex__(self, protocol)  # (how, (class,), state, ...)
        return remade, (original, forward), *reduced[2:]

    # a class that wraps its subclasses' forward, as transformers' checkpointed layers do, wraps this one
    return type(
        original.__name__,
        (original,),
        {
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
            "__reduce_ex__": reduce,
            "forward": forward,
            MARK: original,
        },
    )


def remade(original: type[nn.Module], forward: Callable[..., Any]) -> nn.Module:
    """An empty object of the accelerated class, for pickle and copy."""
    kind = accelerated_class(original, forward)
    return kind.__new__(kind)
