"""Makes bfloat16, and casts to 8-bit floats, right in Triton's interpreter, for tests.

The interpreter keeps a bfloat16 as the uint16 of its bits. Its cast from float32 drops the low bits
instead of rounding to nearest even, as a GPU does, and `tl.dot` multiplies the integers. Both are
mended here. All other arithmetic on bfloat16 tensors stays wrong: kernels load to float32 first.
Its cast to 8-bit floats loses a carry into the exponent, and does not saturate as a GPU's does.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def _widen(bits: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)


def _round(values: np.ndarray) -> np.ndarray:
    """float32 to the bits of the nearest bfloat16, ties to even."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


_EIGHT_BITS = {tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}


def _to_8_bits(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """float32 to the bits of the nearest 8-bit float, the largest one beyond it."""
    most = torch.finfo(dtype).max
    wide = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).clamp(-most, most)
    return wide.to(dtype).view(torch.uint8).numpy()


def patch() -> None:
    """Replaces the interpreter's casts to and from bfloat16 and to 8-bit floats, and its dot. Once a
    process."""
    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot
    convert = InterpreterBuilder.create_fp_to_fp

    def is_bf16(handle) -> bool:
        return getattr(handle.dtype, "scalar", handle.dtype) == tl.bfloat16

    def widened(handle):
        return TensorHandle(_widen(handle.data), tl.float32) if is_bf16(handle) else handle

    def patched_cast(self, source, to):
        if to.scalar in _EIGHT_BITS:
            source = widened(source)
            return TensorHandle(_to_8_bits(source.data, _EIGHT_BITS[to.scalar]), to.scalar)
        if to.scalar == tl.bfloat16:
            if is_bf16(source):
                return source
            return TensorHandle(_round(source.data.astype(np.float32)), tl.bfloat16)
        return cast(self, widened(source), to)

    def patched_convert(self, source, to, rounding_mode):
        if is_bf16(source) or to.scalar == tl.bfloat16 or to.scalar in _EIGHT_BITS:
            return patched_cast(self, source, to)
        return convert(self, source, to, rounding_mode)

    def patched_dot(self, a, b, *rest):
        return dot(self, widened(a), widened(b), *rest)

    InterpreterBuilder.cast_impl = patched_cast
    InterpreterBuilder.create_fp_to_fp = patched_convert
    InterpreterBuilder.create_dot = patched_dot
