"""How Python calls the C++ kernels of csrc/ops: by name, through ctypes.

A kernel is a plain function of pointers, sizes and strides; it is compiled for several instruction
sets and looked up by name for the one in use. The library itself says what arguments each takes and
how its structures lie in memory, so that the two sides cannot differ unnoticed.

Parameters reach the kernels as float32 vectors and their gradients come back so; activations keep
their dtype. The tensors that a call names must outlive it.
"""

import ctypes
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from eva_fast import native
from eva_fast.ops import choose
from eva_fast.ops.checks import row_stride as row_stride  # kernels take it from here
from eva_fast.ops.registry import Case, Obstacle, find

ISA_NAMES = ("baseline", "avx2", "avx512")
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# The letters of csrc/ops/kernels.h.
_TYPES: dict[str, Any] = {
    "p": ctypes.c_void_p,
    "i": ctypes.c_int32,
    "l": ctypes.c_int64,
    "b": ctypes.c_bool,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}
Structure = TypeVar("Structure", bound=type[ctypes.Structure])


def native_op(
    op: str, limits: Obstacle | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the function is the C++ implementation of `op`, within `limits`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        find(op).add("native", function, limits=limits)
        return function

    return decorate


def float32_vectors(case: Case) -> str | None:
    """The limits of a kernel that multiplies matrices."""
    if case.dtype != torch.float32:
        return "takes float32"
    return "needs AVX2" if isa() == "baseline" else None


class _Kernels(dict):
    """{name: kernel for the instruction set in use}, each looked up when first called."""

    def __missing__(self, name: str) -> Callable[..., None]:
        library = _library()
        signature = library.eva_kernel_signature(name.encode())
        if signature is None:
            raise KeyError(f"the C++ library has no kernel {name!r}")
        types = [_TYPES[letter] for letter in signature.decode()]
        kernel = ctypes.CFUNCTYPE(None, *types)(library.eva_kernel(name.encode()))

        def first_call(*arguments: Any) -> None:
            # ctypes lets more arguments than declared pass; a kernel has one caller, so once is enough
            if len(arguments) != len(types):
                raise TypeError(
                    f"the C++ kernel {name} takes {len(types)} arguments ({signature.decode()}), "
                    f"but was called with {len(arguments)}"
                )
            kernel(*arguments)
            self[name] = kernel

        return first_call


KERNELS = _Kernels()


def mirrored(structure: Structure) -> Structure:
    """Decorator: checks that a structure lies in memory as the C++ one of its name. RuntimeError that
    names the field where it does not."""
    offset = _library().eva_offset
    name = structure.__name__
    ours = {name: ctypes.sizeof(structure)} | {
        f"{name}.{field}": getattr(structure, field).offset for field, *_ in structure._fields_
    }
    for field, place in ours.items():
        found = offset(field.encode())
        if found != place:
            raise RuntimeError(
                f"{field} lies at {place} bytes in Python, but at {found} in the C++ library"
            )
    return structure


def set_isa(name: str | None) -> str:
    """Chooses the instruction set of all kernels: "baseline", "avx2", "avx512" or None for the
    widest. Returns the one in use, which is never more than this CPU runs."""
    if name is not None and name not in ISA_NAMES:
        raise ValueError(f"unknown instruction set {name!r}: choose from {ISA_NAMES}")
    if not native.available():
        raise ValueError("the C++ kernels are not built: there is no instruction set to choose")
    KERNELS.clear()
    choose.forget_measured()
    return ISA_NAMES[_library().eva_set_isa(-1 if name is None else ISA_NAMES.index(name))]


def isa() -> str:
    """The instruction set in use."""
    return ISA_NAMES[_library().eva_isa()] if native.available() else "none"


def at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def vector(tensor: Tensor | None) -> Tensor | None:
    """A parameter as dense float32."""
    return None if tensor is None else tensor.float().contiguous()


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype)


def check_indices(
    op: str, mask: Tensor | None, patches: int, lowest: int = 0, name: str = "mask"
) -> None:
    """Memory outside a tensor is never touched: on the CPU reading the mask costs nothing."""
    if mask is None or not mask.numel():
        return
    low, high = (int(value) for value in mask.aminmax())
    if low < lowest or high >= patches:
        allowed = f"{lowest}..{patches - 1}"
        raise ValueError(f"{op}: {name} indices must be in {allowed}, got {low} to {high}")


def _library() -> ctypes.CDLL:
    library = native.library()
    assert library is not None  # asked for only where it is there
    library.eva_kernel.restype = ctypes.c_void_p
    library.eva_kernel.argtypes = [ctypes.c_char_p]
    library.eva_kernel_signature.restype = ctypes.c_char_p
    library.eva_kernel_signature.argtypes = [ctypes.c_char_p]
    library.eva_offset.restype = ctypes.c_int64
    library.eva_offset.argtypes = [ctypes.c_char_p]
    return library
