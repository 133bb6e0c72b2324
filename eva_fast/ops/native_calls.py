"""How Python calls the C++ kernels of csrc/ops: by name, through ctypes.

A kernel is a plain function of pointers, sizes and strides; it is compiled for several instruction
sets and looked up by name for the one in use. The tensors that a call names must outlive it.
"""

import ctypes
import functools
from ctypes import c_double, c_float, c_int, c_int32, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from eva_fast import native

ISA_NAMES = ("baseline", "avx2", "avx512")
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_I, _L, _P, _F, _D = c_int, c_int64, c_void_p, c_float, c_double
_ARGUMENTS: dict[str, list[Any]] = {
    "add_layer_norm": [_I, _L, _L, _P, _L, _P, _L, _P, _P, _L, _P, _P, _F, *[_P] * 4, _I],
    "add_layer_norm_backward": [_I, _L, _L, *[_P, _L] * 3, *[_P] * 5, _L, *[_P] * 4, _I, _I],
    "adamw": [_P, _L, _P, _D, _D, _D, _P, _I],
    "sum_of_squares": [_P, _L, _P, _I],
    "attention": [_L] * 5 + [_P] * 5 + [_F, _I],
    "attention_backward": [_L] * 5 + [_P] * 9 + [_F, _I],
    "bias_gelu": [_I, _I, _L, _L, _P, _L, _P, _P, _I],
    "bias_gelu_backward": [_I, _I, _L, _L, _P, _L, _P, _L, *[_P] * 4, _I],
    "embed_tokens": [_I, _L, _L, _L, _P, _L, _L, _P, _L, *[_P] * 5, _I],
    "embed_tokens_backward": [_I, _L, _L, _L, _P, _L, _L, _P, _L, *[_P] * 3, _I],
    "gemm": [_L, _L, _L, *[_P, _L, _L] * 2, _P, _L, _P, _I, _I],
    "masked_gather": [_L, _L, _L, _P, _L, _L, _P, _P, _I],
    "masked_gather_backward": [_L, _L, _L, _L, _P, _L, _P, _P, _I],
    "negative_cosine": [_I, _I, _L, _L, _P, _L, _P, _L, _F, _P, _P, _I],
    "negative_cosine_backward": [_I, _I, _L, _L, _P, _L, _P, _L, _P, _F, _P, _P, _I],
    "patchify": [_I, _L, _L, _L, _L, _P, _P, _P, _I],
}


class AdamTensor(ctypes.Structure):
    """One tensor of the optimiser's list, as csrc/ops/adamw.h has it."""

    _fields_ = (
        ("size", c_int64),
        ("param", c_void_p),
        ("exp_avg", c_void_p),
        ("exp_avg_sq", c_void_p),
        ("grad", c_void_p),
        ("copy", c_void_p),
        ("step", c_void_p),
        ("grad_type", c_int32),
        ("copy_type", c_int32),
        ("weight_decay", c_double),
    )


@functools.cache
def kernel(name: str):
    library = native.library()
    assert library is not None  # registered only where the library is there
    library.eva_kernel.restype = c_void_p
    library.eva_kernel.argtypes = [ctypes.c_char_p]
    return ctypes.CFUNCTYPE(None, *_ARGUMENTS[name])(library.eva_kernel(name.encode()))


def set_isa(isa: str | None) -> str:
    """Chooses the instruction set of all kernels: "baseline", "avx2", "avx512" or None for the
    widest. Returns the one in use, which is never more than this CPU runs."""
    if isa is not None and isa not in ISA_NAMES:
        raise ValueError(f"unknown instruction set {isa!r}: choose from {ISA_NAMES}")
    library = native.library()
    if library is None:
        raise ValueError("the C++ kernels are not built: there is no instruction set to choose")
    kernel.cache_clear()
    return ISA_NAMES[library.eva_set_isa(-1 if isa is None else ISA_NAMES.index(isa))]


def isa() -> str:
    """The instruction set in use."""
    library = native.library()
    return ISA_NAMES[library.eva_isa()] if library is not None else "none"


def at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def vector(tensor: Tensor | None) -> Tensor | None:
    """A parameter as dense float32."""
    return None if tensor is None else tensor.float().contiguous()


def row_stride(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.stride(0)


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype)
