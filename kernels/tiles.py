"""Tile sizes and launch options of a kernel: a few sets, of which the fastest on the GPU at hand runs.

The first set is known to compile without spills everywhere and runs where nothing can be measured.
The others are raced against it when a kernel meets a shape first, and the answer is kept on disk with
the other choices (`eva_fast.ops.choose`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from eva_fast.ops import choose


class Tiles(NamedTuple):
    """One set; in attention BM queries meet BN keys."""

    block_m: int
    block_n: int
    warps: int
    stages: int
    beside: bool = False
    """Whether a program takes the rows that no tile holds beside its own tile; else they get a
    program."""

    def __str__(self) -> str:
        beside = ", rest beside" if self.beside else ""
        size = f"{self.block_m}x{self.block_n}"
        return f"{size}, {self.warps} warps, {self.stages} stages{beside}"


_fastest: dict[tuple, Tiles] = {}


def fastest(
    kernel: str,
    shape: tuple,
    device: torch.device,
    options: Callable[[], Sequence[Tiles]],
    run: Callable[[Tiles], object],
) -> Tiles:
    """The fastest of the options for a kernel, measured by `run`, which may be called often.

    kernel and shape: what the answer is kept under. The first option off the GPU, and while a CUDA
    graph is captured.
    """
    key = kernel, shape, device
    found = _fastest.get(key)
    if found is None:
        found, final = _find(kernel, shape, device, options(), run)
        if final:
            _fastest[key] = found
    return found


def _find(kernel, shape, device, options, run) -> tuple[Tiles, bool]:
    """The answer, and whether it is the last word."""
    if len(options) == 1 or device.type != "cuda":
        return options[0], True
    if torch.cuda.is_current_stream_capturing():
        return options[0], False
    by_name = {str(option): option for option in options}
    choice = choose.measured(
        device,
        {"kernel": kernel, "among": list(by_name)},
        " ".join((kernel, *map(str, shape))),
        list(by_name),
        lambda: {name: functools.partial(run, option) for name, option in by_name.items()},
    )
    return by_name[choice.implementation], True


def forget() -> None:
    """Reads what was measured from disk again, as another process would."""
    _fastest.clear()


def capability(device: torch.device) -> int:
    """Compute capability times ten; 80, the oldest, off the GPU."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
