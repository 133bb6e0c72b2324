"""Which implementation of an op runs: plain PyTorch, C++ (`native`) or Triton.

Every op is registered with torch once; its body looks up the implementation here. A choice holds
for the process: made by `set_kernels`, logged once, and looked up without cost afterwards.

    register("add_layer_norm", "native", function)     an implementation announces itself
    set_kernels("auto", {"bias_gelu": "torch"})        the run chooses, e.g. from timings
    implementation("bias_gelu", "cuda") -> "torch"     what would run
    function("bias_gelu", tensor)(...)                 what an op's body calls

Op names are those of the custom ops: "bias_gelu", "bias_gelu_backward". A choice for the forward
name covers the backward too, unless the backward is named itself. Implementations live in
`eva_fast.kernels.<op>` (triton) and `eva_fast.ops.native_ops` (native) and are imported when first
needed. An op which the chosen kind does not cover runs on plain PyTorch, and so does float64.
"""

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from eva_fast import native

KINDS = ("torch", "native", "triton")
logger = logging.getLogger(__name__)

_functions: dict[tuple[str, str], Callable[..., Any]] = {}
_measured: dict[str, Callable[[], str]] = {}
_mode = "auto"
_overrides: dict[str, str] = {}
_note: Callable[..., Any] | None = None


def register(op: str, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes `function` the implementation of `op` ("torch", "native" or "triton")."""
    _check_kind(kind)
    _functions[op, kind] = function
    implementation.cache_clear()
    _lookup.cache_clear()
    return function


def register_measured(op: str, choose: Callable[[], str]) -> None:
    """Where C++ could run `op`, `choose()` says whether it shall, unless a run chose otherwise."""
    _measured[op] = choose
    implementation.cache_clear()
    _lookup.cache_clear()


def set_kernels(mode: str = "auto", overrides: dict[str, str] | None = None) -> None:
    """Chooses implementations for the whole process.

    mode: "auto" takes Triton on NVIDIA GPUs and C++ (if built) on CPUs; "torch", "native" and
    "triton" force one kind. overrides: {op: kind}, stronger than the mode.
    """
    global _mode, _overrides
    if mode != "auto":
        _check_kind(mode)
    for kind in (overrides or {}).values():
        _check_kind(kind)
    _mode, _overrides = mode, dict(overrides or {})
    implementation.cache_clear()
    _lookup.cache_clear()
    logger.info("kernels: %s%s", mode, f", except {_overrides}" if _overrides else "")


@functools.cache
def implementation(op: str, device_type: str) -> str:
    """The kind of implementation that runs `op` on this device type: torch, native or triton."""
    forced = _overrides.get(op) or _overrides.get(op.removesuffix("_backward"))
    kind = forced or (None if _mode == "auto" else _mode)
    if kind is None:
        kind = fused_kind(op, device_type)
        return _measured[op]() if kind == "native" and op in _measured else kind or "torch"
    if not usable(kind, device_type):
        raise ValueError(
            f"kernels={kind!r} cannot run {op} on {device_type} tensors: triton needs an NVIDIA "
            "GPU (or TRITON_INTERPRET=1 on a CPU), native the built C++ library and a CPU; "
            "'torch' and 'auto' run everywhere"
        )
    return kind if _find(op, kind) else "torch"


def fused_kind(op: str, device_type: str) -> str | None:
    """Triton or C++, whichever is for this device type and can run `op`; else None."""
    kind = {"cpu": "native", "cuda": "triton"}.get(device_type)
    return kind if kind and usable(kind, device_type) and _find(op, kind) else None


def forced(op: str) -> str | None:
    """The kind that `set_kernels` demands for `op`; None where it left the choice open."""
    return _overrides.get(op) or (None if _mode == "auto" else _mode)


def function(op: str, tensor: torch.Tensor) -> Callable[..., Any]:
    """The function that runs `op` for tensors like this one."""
    if tensor.dtype == torch.float64:
        return _functions[op, "torch"]
    chosen = _lookup(op, tensor.device.type)
    return chosen if _note is None else functools.partial(_note, op, chosen)


def function_of(op: str, kind: str) -> Callable[..., Any]:
    """One implementation of an op; KeyError where there is none."""
    _find(op, kind)
    return _functions[op, kind]


@contextlib.contextmanager
def noting(note: Callable[..., Any]) -> Iterator[None]:
    """While this is open, `note(op, function, *arguments)` is called in place of every op's function
    and gives its result."""
    global _note
    _note = note
    try:
        yield
    finally:
        _note = None


@functools.cache
def interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _lookup(op: str, device_type: str) -> Callable[..., Any]:
    return _functions[op, implementation(op, device_type)]


def usable(kind: str, device_type: str) -> bool:
    """Whether this machine can run implementations of `kind` on this device type."""
    if kind == "native":
        return device_type == "cpu" and native.available()
    if kind == "triton":
        on_device = device_type == "cuda" or (device_type == "cpu" and interpreted())
        return on_device and _installed("triton")
    return True


@functools.cache
def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _find(op: str, kind: str) -> bool:
    """Imports the home of an implementation, then says whether it has one for `op`."""
    if (op, kind) not in _functions and kind != "torch":
        base = op.removesuffix("_backward")
        home = "eva_fast.ops.native_ops" if kind == "native" else f"eva_fast.kernels.{base}"
        if _installed(home):
            importlib.import_module(home)
    return (op, kind) in _functions


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown kernels {kind!r}: choose from {('auto', *KINDS)}")
