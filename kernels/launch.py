"""What the launchers share: registration, block sizes, and how many programs stay resident."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton

from eva_fast.ops.registry import Obstacle, find

# A tensor's elements are moved 16 bytes a thread and access; one warp then takes 512 bytes.
WARP_SIZE = 32


def triton_op(
    op: str, name: str = "triton", limits: Obstacle | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the launcher is the implementation `name` of `op`, which runs within `limits`. The
    current device is then that of its first tensor."""

    def decorate(launcher: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(launcher)
        def on_device(first, *args):
            with torch.cuda.device_of(first[0] if isinstance(first, (list, tuple)) else first):
                return launcher(first, *args)

        find(op).add(name, on_device, limits=limits)
        return on_device

    return decorate


def row_block(width: int) -> int:
    """The power of two that holds a whole row."""
    return max(16, triton.next_power_of_2(width))


def row_warps(width: int, per_thread: int) -> int:
    """Warps for one row, with at most about `per_thread` elements of it in each thread."""
    return min(max(row_block(width) // (WARP_SIZE * per_thread), 1), 16)


@functools.cache
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def resident_programs(device: torch.device, per_processor: int) -> int:
    """Size of a persistent grid: a few programs for each of the GPU's multiprocessors."""
    if device.type != "cuda":
        return 3  # the interpreter runs programs one after another; more than one finds mistakes
    return per_processor * _processors(
        device.index if device.index is not None else torch.cuda.current_device()
    )
