"""Triton kernels of `quantise_fp8`: see eva_fast/ops/quantise_fp8.py for the maths.

One kernel finds the largest magnitude of each program's share, as the bits of a float, which order
like integers and put what is not finite on top; the other takes the largest of them, quantises tiles
and writes each as it is and transposed. Where the parts are many the first one makes them few.
"""

import torch
import triton
import triton.language as tl

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import cdiv, kernel, next_power_of_2, resident_programs, triton_op
from eva_fast.ops.checks import nothing
from eva_fast.ops.largest import PARTS
from eva_fast.ops.quantise_fp8 import LARGEST_EXPONENT, padded

SHARE = 4096
PROGRAMS_PER_PROCESSOR = 4
BLOCK_M, BLOCK_K = 128, 64
LEAST_CAPABILITY = 89


@triton.jit
def scale_of(b_largest, EXPONENT: tl.constexpr):
    """The scale of what is at most b_largest, fp32, NaN where that is not finite."""
    bits = b_largest.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    # the carry of a mantissa above 1.75 goes into the exponent
    field = tl.maximum(((bits + 0x1FFFFF) >> 23) - EXPONENT, 1)
    return tl.where(bits < 0x7F800000, field << 23, 0x7FC00000).to(tl.float32, bitcast=True)


@triton.jit
def inverse_of(scale):
    """1 / scale, of a power of two."""
    field = scale.to(tl.int32, bitcast=True) >> 23
    return ((254 - field) << 23).to(tl.float32, bitcast=True)


@triton.jit
def magnitude_bits(b_x):
    """|x| of fp32 as integers of the same order, with what is not finite on top."""
    return b_x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def as_stored(bits, element: tl.constexpr):
    """A magnitude, fp32, rounded to the type that its tensor has: rounding keeps the order."""
    return bits.to(tl.float32, bitcast=True).to(element).to(tl.float32)


@kernel
@triton.jit
def largest_kernel(p_x, p_parts, N, BLOCK: tl.constexpr):
    """One program: the largest |x| in every num_programs-th block of the flat tensor."""
    b_most = tl.zeros([BLOCK], tl.int32)
    for block in range(tl.program_id(0), tl.cdiv(N, BLOCK), tl.num_programs(0)):
        o_x = block * BLOCK + tl.arange(0, BLOCK).to(tl.int64)  # block has the width of N
        b_x = tl.load(p_x + o_x, mask=o_x < N, other=0.0).to(tl.float32)
        b_most = tl.maximum(b_most, magnitude_bits(b_x))
    tl.store(p_parts + tl.program_id(0), tl.max(b_most, 0).to(tl.float32, bitcast=True))


@kernel
@triton.jit
def quantise_kernel(
    p_x, p_parts, p_scale, p_rows, p_columns, M, PADDED, N,
    K: tl.constexpr, EXPONENT: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: a tile [BLOCK_M, BLOCK_K] of x, as rows, as columns or both."""
    if p_parts is not None:
        o_p = tl.arange(0, BLOCK_P)
        b_parts = tl.load(p_parts + o_p, mask=o_p < N, other=0.0)
        most = tl.max(magnitude_bits(b_parts), 0)
        scale = scale_of(most.to(tl.float32, bitcast=True), EXPONENT)
        tl.store(p_scale, scale, mask=tl.program_id(0) == 0)
    else:
        scale = tl.load(p_scale)
    inverse = inverse_of(scale)
    blocks = tl.cdiv(K, BLOCK_K)
    o_m = tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)
    o_k = tl.program_id(0) % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    o_x = o_m[:, None] * K + o_k[None, :]
    m_x = (o_m[:, None] < M) & (o_k[None, :] < K)
    b_x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32) * inverse
    if p_rows is not None:
        tl.store(p_rows + o_x, b_x.to(p_rows.dtype.element_ty), mask=m_x)
    if p_columns is not None:
        m_columns = (o_k[:, None] < K) & (o_m[None, :] < PADDED)
        b_columns = tl.trans(b_x.to(p_columns.dtype.element_ty))
        tl.store(p_columns + o_k[:, None] * PADDED + o_m[None, :], b_columns, mask=m_columns)


def limits(case):
    """Which GPUs have 8-bit floats, see `eva_fast.ops.registry.Implementation`."""
    if case.device.type != "cuda" or not torch.cuda.is_available():
        return None
    if torch.cuda.get_device_capability(case.device) < divmod(LEAST_CAPABILITY, 10):
        return "needs a GPU with 8-bit floats (compute capability 8.9)"
    return None


@triton_op("quantise_fp8", limits=limits)
def _quantise(x, scale, dtype, want_rows, want_columns, largest):
    m, k = x.shape
    length = padded(m)
    rows = x.new_empty((m, k), dtype=dtype) if want_rows else nothing(x).to(dtype)
    columns = x.new_empty((k, length), dtype=dtype) if want_columns else nothing(x).to(dtype)
    parts, found = None, nothing(x).float()
    if scale is None:
        parts = _few_parts(x if largest is None else largest, largest is not None)
        scale = found = x.new_empty((), dtype=torch.float32)
    count = 1 if parts is None else parts.shape[0]
    tiles = max(1, cdiv(length, BLOCK_M) * cdiv(k, BLOCK_K))
    quantise_kernel[(tiles,)](
        x, parts, scale, rows if want_rows else None, columns if want_columns else None,
        m, length, count, K=k, EXPONENT=LARGEST_EXPONENT[dtype],
        BLOCK_P=next_power_of_2(count), BLOCK_M=BLOCK_M, BLOCK_K=BLOCK_K, num_warps=8,
    )  # fmt: skip
    return rows, columns, found


def _few_parts(x, are_parts: bool):
    """Float32 [P], parts of the largest |x|: x itself where it is such parts, and not too many."""
    count = x.numel()
    if are_parts and 0 < count <= PARTS:
        return x
    few = PARTS if are_parts else resident_programs(x.device, PROGRAMS_PER_PROCESSOR)
    parts = x.new_empty((min(max(1, cdiv(count, SHARE)), few),), dtype=torch.float32)
    largest_kernel[(parts.shape[0],)](x, parts, count, BLOCK=SHARE, num_warps=8)
    return parts


def aot_cases(shape: AotShape) -> list[AotCase]:
    """Activations and gradients of the MLP with a new scale and with a known one, and its weight."""
    if shape.capability < LEAST_CAPABILITY:
        return []
    m, k, parts = shape.batch * shape.tokens, shape.mlp_hidden, 528
    sizes = {"M": m, "PADDED": padded(m), "N": parts}
    tile = {"K": k, "BLOCK_P": 1024, "BLOCK_M": BLOCK_M, "BLOCK_K": BLOCK_K}
    cases = []
    for element in (f"*{shape.dtype}", "*fp32"):
        cases.append(
            AotCase(
                largest_kernel,
                {"p_x": element, "p_parts": "*fp32", "N": m * k},
                {"BLOCK": SHARE},
                num_warps=8,
                label=element[1:],
            )
        )
    whole = {"p_x": f"*{shape.dtype}", "p_scale": "*fp32", **sizes}
    for label, kind, exponent, known, columns in (
        ("e4m3 rows", "*fp8e4nv", 8, False, False),
        ("e4m3 columns, known scale", "*fp8e4nv", 8, True, True),
        ("e5m2 rows and columns", "*fp8e5", 15, False, True),
    ):
        given = {**whole, "p_columns" if known else "p_rows": kind}
        constants = {**tile, "EXPONENT": exponent}
        if known:
            constants |= {"p_parts": None, "p_rows": None}
        else:
            given["p_parts"] = "*fp32"
        if columns:
            given["p_columns"] = kind
        else:
            constants["p_columns"] = None
        cases.append(AotCase(quantise_kernel, given, constants, num_warps=8, label=label))
    both = {**whole, "p_x": "*fp32", "p_parts": "*fp32"}
    both |= {"p_rows": "*fp8e4nv", "p_columns": "*fp8e4nv"}
    cases.append(
        AotCase(quantise_kernel, both, {**tile, "EXPONENT": 8}, num_warps=8, label="weight")
    )
    return cases
