"""What a library of networks has to say of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eva_fast.errors import UsageError, first_line
from eva_fast.model.networks.drop_path import DrawnDropPath

REFUSALS = (
    TypeError, ValueError, RuntimeError, AssertionError, KeyError, IndexError, ZeroDivisionError,
    AttributeError,
)  # fmt: skip
"""What builders raise for arguments that do not fit together."""


@contextmanager
def without_values() -> Iterator[None]:
    """Modules are made on the meta device meanwhile, and torch's random state stays as it is."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        yield


class Statistics(NamedTuple):
    """What images in 0..1 are normalised with: a number a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Library:
    """How a library's networks are built and read. A subclass imports it on first use."""

    title: str
    """As people write it, and its package's name."""
    family: str
    """What stands before the slash of a student's name."""

    def __init__(self, name: str):
        """name: a student's, FAMILY/MODEL. UsageError where the library is not installed or does not
        know the model."""
        self.name, self.model = name, name.partition("/")[2]

    def settle(self, asked: dict[str, int]) -> tuple[int, dict[str, Any]]:
        """(side of the images in pixels, arguments of the builder) for the sizes that are asked for.
        UsageError for one that the builder does not take, by its name."""
        raise NotImplementedError

    def build(self, arguments: dict[str, Any], drop_path: float = 0.0) -> nn.Module:
        """The network, its values the library's own from torch's random state. drop_path: of its last
        block, where its builder takes that."""
        raise NotImplementedError

    def drop_paths(self, network: nn.Module, rate: float) -> list[DrawnDropPath]:
        """Its drop-paths, of which the last has that rate; [] where it has none."""
        raise NotImplementedError

    def features(self, network: nn.Module, images: Tensor, node: str | None) -> Tensor:
        """Tokens [B,T,D] after the last norm, or a map [B,D,h,w] or [B,h,w,D]: the last features that
        know where they are. node: what `node` found."""
        raise NotImplementedError

    def node(self, network: nn.Module, images: Tensor) -> str | None:
        """The module whose output the features are, where that has to be looked for."""
        return None

    def blocks(self, network: nn.Module) -> list[nn.Module]:
        """Of a transformer whose blocks all have one shape; else []."""
        raise NotImplementedError

    def recompute(self, network: nn.Module, enable: bool) -> None:
        """Activation checkpointing of a network without such blocks. UsageError where it has none."""
        raise NotImplementedError

    def converted(self, network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Weights as the network names and sizes them, of files under other names or of other sizes
        that the library itself converts; None where it does not."""
        return None

    def first_weights(self, network: nn.Module) -> list[str]:
        """Names of the weights that see the images' channels, where the library says them."""
        return []

    def statistics(self, network: nn.Module) -> Statistics:
        """What the library's own weights were trained with."""
        raise NotImplementedError

    def refused(self, arguments: dict[str, Any], error: Exception) -> UsageError:
        """The error for arguments that the builder did not take."""
        with_ = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        return UsageError(
            f"{self.title} cannot build {self.model!r} with {with_}: {first_line(error)}"
        )

    def takes_not(self, option: str) -> UsageError:
        """The error for a size that the builder does not take."""
        return UsageError(
            f"model {self.name!r} takes no {option}: {self.title}'s builder has no such argument; leave "
            "it out or choose another name"
        )
