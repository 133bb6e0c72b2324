"""What the launchers share: registration, block sizes, and how many programs stay resident."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs

from eva_fast.ops.registry import Obstacle, find, interpreted

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
            index = (first[0] if isinstance(first, (list, tuple)) else first).get_device()
            if index < 0 or index == torch.cuda.current_device():
                return launcher(first, *args)
            with torch.cuda.device(index):
                return launcher(first, *args)

        find(op).add(name, on_device, limits=limits)
        return on_device

    return decorate


class Kernel:
    """A Triton function whose launches look up what they compile to by a key that Python makes in
    little time: of tensors the dtype and the address's last four bits, of all else the value. That is
    finer than what Triton specialises on, which costs it more than the launch."""

    def __init__(self, fn: Any):
        self.fn = fn
        self._known: dict[tuple, tuple[Any, tuple]] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return functools.partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        device = torch.cuda.current_device()
        key = (
            device,
            *[(a.dtype, a.data_ptr() & 15) if isinstance(a, Tensor) else a for a in args],
            *options.values(),
        )
        known = self._known.get(key)
        if known is None or _watched():
            self._first_launch(key, grid, args, options)
            return
        compiled, constants = known
        stream = triton.runtime.driver.active.get_current_stream(device)
        compiled.run(
            *grid, *_ONES[len(grid)], stream, compiled.function, compiled.packed_metadata,
            None, None, None, *args, *constants,
        )  # fmt: skip

    def _first_launch(self, key: tuple, grid: tuple, args: tuple, options: dict) -> None:
        compiled = self.fn[grid](*args, **options)
        names = self.fn.arg_names[len(args) :]
        if all(name in options for name in names):
            if len(self._known) >= _MOST_KNOWN:  # of ragged batches, say
                self._known.clear()
            self._known[key] = compiled, tuple(options[name] for name in names)


_ONES: tuple[tuple[int, ...], ...] = ((), (1, 1), (1,), ())  # what a grid has beyond its own sizes
_MOST_KNOWN = 1024


def _watched() -> bool:
    """Whether someone (Triton's profiler, say) hooks into launches; then Triton makes them."""
    hooks = knobs.runtime
    return getattr(hooks.launch_enter_hook, "calls", True) or getattr(
        hooks.launch_exit_hook, "calls", True
    )


def kernel(fn: Any) -> Any:
    """Decorator of Triton functions that are launched, `kernel[grid](...)`: see `Kernel`. Tensors and
    numbers are given by position, constants by name. In Triton's interpreter the function itself."""
    return fn if interpreted() else Kernel(fn)


def cdiv(a: int, b: int) -> int:
    """a / b rounded up; triton.cdiv takes a hundred times as long on the host."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is not below n, for n of 1 and more."""
    return 1 << (n - 1).bit_length()


def row_block(width: int) -> int:
    """The power of two that holds a whole row."""
    return max(16, next_power_of_2(width))


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
