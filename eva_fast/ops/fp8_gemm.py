"""Matrix product of 8-bit operands: `torch._scaled_mm` where the GPU has it, else the same by float32.

    out = scale_a scale_b a b^T + bias         a [M, K], b [N, K], both row by row

Tensor cores read 8-bit operands only along the contraction, so both operands are given that way; for
the products of a backward `quantise_fp8` writes the transposes. One operand at most may be e5m2. K and
N are multiples of 16.

Elsewhere, on CPUs above all, the product is emulated: the operands are exact in float32, so are the
scales, and the sum is float32, rounded once. A GPU sums with fewer bits: H100's tensor cores align the
products of a step to their largest and keep about 14 bits of them. `fast` sums so over all of K;
without it partial sums are moved to float32 registers on the way (cuBLAS, "fast accumulation").
"""

import functools

import torch
from torch import Tensor

from eva_fast.ops.checks import check
from eva_fast.ops.direct import direct
from eva_fast.ops.gemm import matmul
from eva_fast.ops.registry import define

__all__ = ["fp8_gemm"]
_NAME = "fp8_gemm"
FORMATS = (torch.float8_e4m3fn, torch.float8_e5m2)
LEAST_CAPABILITY = (8, 9)


@functools.cache
def has_fp8(index: int) -> bool:
    """Whether the NVIDIA GPU of that number multiplies 8-bit matrices."""
    return torch.cuda.get_device_capability(index) >= LEAST_CAPABILITY


def emulated(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
    fast: bool = False,
) -> Tensor:
    """`fp8_gemm` by a float32 product."""
    out = matmul(a.float(), b.float().t()) * (scale_a * scale_b)
    return (out if bias is None else out + bias.float()).to(dtype)


def _torch(a, b, scale_a, scale_b, bias, dtype, fast):
    if a.is_cuda and has_fp8(a.get_device()) and a.shape[0]:
        return torch._scaled_mm(
            a, b.t(), scale_a, scale_b, bias=bias, out_dtype=dtype, use_fast_accum=fast
        )
    return emulated(a, b, scale_a, scale_b, bias, dtype)


def _gemm(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    fast: bool,
) -> Tensor:
    return _torch(a, b, scale_a, scale_b, bias, dtype, fast)


_gemm_op = torch.library.custom_op(f"eva_fast::{_NAME}", mutates_args=())(_gemm)


@_gemm_op.register_fake
def _(a, b, scale_a, scale_b, bias, dtype, fast):
    return a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)


def fp8_gemm(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
    fast: bool = False,
) -> Tensor:
    """scale_a scale_b a b^T + bias: [M, N] in `dtype`, bfloat16, float16 or float32.

    a: [M, K], b: [N, K], float8_e4m3fn or float8_e5m2, not both e5m2, last stride 1. scales: float32
    []. bias: [N] in `dtype` (16 bit), or None. fast: fewer bits in a GPU's sums, more speed. Not
    differentiable. ValueError naming what does not fit.
    """
    check(_NAME, "a", a, shape=(None, None), dtypes=FORMATS)
    check(_NAME, "b", b, shape=(None, a.shape[1]), dtypes=FORMATS, like=a)
    if a.dtype == b.dtype == torch.float8_e5m2:
        raise ValueError(f"{_NAME}: a and b are float8_e5m2, which no GPU multiplies")
    for name, size in (("K", a.shape[1]), ("N", b.shape[0])):
        if size % 16:
            raise ValueError(f"{_NAME}: {name} is {size}, expected a multiple of 16")
    return gemm_unchecked(a, b, scale_a, scale_b, bias, dtype, fast)


def gemm_unchecked(a, b, scale_a, scale_b, bias, dtype, fast) -> Tensor:
    """`fp8_gemm` without the checks, for functions that bring their own backward."""
    run = _gemm if direct(a) else _gemm_op
    return run(a, b, scale_a, scale_b, bias, dtype, fast)


def _flops(a, b, *_, **__) -> int:
    return 2 * a.shape[0] * a.shape[1] * b.shape[0]


OP = define(_NAME, part="gemm", reference=emulated, plain=_torch, flops=_flops, families=())
fp8_gemm.reference = emulated  # type: ignore[attr-defined]
