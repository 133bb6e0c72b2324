"""What the launchers share: registration, block sizes, and how many programs stay resident."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from eva_fast.ops.registry import Obstacle, find, interpreted

# CUDA is at work where these are called, so nothing has to be set up first.
_current_device = getattr(torch._C, "_cuda_getDevice", None)
_current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # as Triton asks for it

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
            if index < 0 or index == _current_device():
                return launcher(first, *args)
            with torch.cuda.device(index):
                return launcher(first, *args)

        find(op).add(name, on_device, limits=limits)
        return on_device

    return decorate


class Kernel:
    """A Triton function whose launches look up what they compile to by a key that Python makes in
    little time: of tensors the dtype, of all else the value, and the addresses' last four bits, which
    are 0 but for views. That is finer than what Triton specialises on, which costs it more than the
    launch."""

    def __init__(self, fn: Any):
        self.fn = fn
        self._known: dict[tuple, tuple[Callable[..., None], tuple]] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return functools.partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        device = _current_device()
        key, bits, values = _reader(*map(type, args))(*args)
        if bits:
            key = *key, *[a.data_ptr() & 15 for a in args if isinstance(a, Tensor)]
        whole = device, key, *options.values()
        known = self._known.get(whole)
        if known is None or _watched():
            self._first_launch(whole, grid, args, options)
            return
        run, constants = known
        run(*grid, *_ONES[len(grid)], _current_stream(device), values + constants)

    def _first_launch(self, key: tuple, grid: tuple, args: tuple, options: dict) -> None:
        compiled = self.fn[grid](*args, **options)
        names = self.fn.arg_names[len(args) :]
        if all(name in options for name in names):
            if len(self._known) >= _MOST_KNOWN:  # of ragged batches, say
                self._known.clear()
            self._known[key] = _runner(compiled), tuple(options[name] for name in names)


_ONES: tuple[tuple[int, ...], ...] = ((), (1, 1), (1,), ())  # what a grid has beyond its own sizes
_MOST_KNOWN = 1024

planned = functools.lru_cache(_MOST_KNOWN)
"""Decorator of functions that make a `plan` of sizes, dtypes and devices: made once for each."""


def plan(
    kernel: Any, grid: tuple[int, ...], *numbers: Any, **constants: Any
) -> Callable[..., None]:
    """A launch of which all is settled but the tensors: `plan(kernel, grid, *numbers, **constants)`
    gives `launch(*tensors)`, which is `kernel[grid](*tensors, *numbers, **constants)`. Tensors, or
    None, stand first in the kernel's signature.

    Of a launch with the dtypes of one before and addresses that are multiples of 16, Python reads
    addresses and dtypes and calls the driver; any other goes through the kernel."""
    if interpreted():
        return lambda *tensors: kernel[grid](*tensors, *numbers, **constants)
    known: dict[tuple, Callable[..., None]] = {}

    def other(key: tuple, aligned: bool, tensors: tuple[Tensor | None, ...]) -> None:
        if aligned and not _watched():
            compiled = kernel.fn[grid](*tensors, *numbers, **constants)
            known[key] = functools.partial(_runner(compiled), *grid, *_ONES[len(grid)])
        else:
            kernel[grid](*tensors, *numbers, **constants)

    names = kernel.fn.arg_names
    count = len(names) - sum(name in constants for name in names) - len(numbers)
    rest = (*numbers, *(constants[name] for name in names[count + len(numbers) :]))
    return _planned_launch(count)(known, other, rest, _current_device, _current_stream, _watched)


@functools.cache
def _planned_launch(count: int) -> Callable[..., Callable[..., None]]:
    """The function of `count` tensors that `plan` gives. Written out, as no loop is as fast."""
    names = [f"a{i}" for i in range(count)]
    addresses = "".join(f"        p{n} = 0 if {n} is None else {n}.data_ptr()\n" for n in names)
    dtypes = "".join(f", None if {n} is None else {n}.dtype" for n in names)
    text = f"""
def make(known, other, rest, current_device, current_stream, watched):
    def launch({", ".join(names)}):
{addresses}
        device = current_device()
        key = (device{dtypes})
        aligned = not ({" | ".join(f"p{n}" for n in names)}) & 15
        run = known.get(key)
        if run is None or not aligned or watched():
            return other(key, aligned, ({", ".join(names)},))
        run(current_stream(device), ({"".join(f"p{n}, " for n in names)}*rest))
    return launch
"""
    scope: dict[str, Any] = {}
    exec(text, scope)
    return scope["make"]


@functools.cache
def _reader(*types: type) -> Callable[..., tuple[tuple, int, tuple]]:
    """For arguments of these types: (the dtypes of tensors and all else, the last four bits of all
    addresses together, the addresses of tensors and all else). Written out, as no loop is as fast."""
    names = [f"a{i}" for i in range(len(types))]
    tensors = {n for n, t in zip(names, types) if issubclass(t, Tensor)}
    addresses = "".join(f"    p{n} = {n}.data_ptr()\n" for n in names if n in tensors)
    kinds = "".join(f"{n}.dtype, " if n in tensors else f"{n}, " for n in names)
    values = "".join(f"p{n}, " if n in tensors else f"{n}, " for n in names)
    bits = " | ".join(f"p{n}" for n in names if n in tensors) or "0"
    scope: dict[str, Any] = {}
    text = (
        f"def read({', '.join(names)}):\n{addresses}    return ({kinds}), ({bits}) & 15, ({values})"
    )
    exec(text, scope)
    return scope["read"]


def _runner(compiled: Any) -> Callable[..., None]:
    """(x, y, z, stream, arguments) -> a launch of a compiled kernel.

    Triton's launcher allocates scratch memory where a kernel wants any, and calls a C function. Where
    none is wanted, and it is the function of triton 3.8, that is called at once: the Python around it
    costs three times as much."""
    launcher, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    wanted = ("global_scratch_size", "profile_scratch_size", "gsan_enabled")
    known = all(
        hasattr(launcher, name) for name in (*wanted, "arg_annotations", "kernel_signature")
    )
    if not known or any(getattr(launcher, name) for name in wanted):
        return lambda x, y, z, stream, arguments: launcher(
            x, y, z, stream, function, metadata, None, None, None, *arguments
        )
    launch, annotations, signature = (
        launcher.launch, launcher.arg_annotations, launcher.kernel_signature
    )  # fmt: skip
    cooperative, early = launcher.launch_cooperative_grid, launcher.launch_pdl
    return lambda x, y, z, stream, arguments: launch(
        x, y, z, stream, function, cooperative, early, metadata, None, None, None, None, None,
        annotations, signature, arguments,
    )  # fmt: skip


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
