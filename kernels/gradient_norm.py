"""Triton kernels of `gradient_norm`: see eva_fast/ops/gradient_norm.py for the maths.

One launch adds the squares of all gradients, chunk by chunk, found through tables on the device
(`tensor_tables`), a second one adds the sums of the chunks. A chunk's sum has a place of its own, and
all are added in a fixed order, without atomics: gradients that are aligned alike give the same bits.
"""

import itertools
import operator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import cdiv, kernel, plan, planned, triton_op
from eva_fast.kernels.tensor_tables import (
    GRAD,
    KEPT,
    PARTS,
    SIZE,
    TRITON_TYPES,
    TensorTables,
    table_entry,
    table_pointer,
)
from eva_fast.ops.largest import CHUNK

BLOCK = 1024  # elements an iteration: 8 for each of 128 threads
BLOCK_P = 4096  # partial sums an iteration: a network of a billion parameters has 62,000


@kernel
@triton.jit
def gradient_squares_kernel(
    p_table, p_chunks, p_partials,
    GRAD_TYPE: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the squares of one chunk of one gradient."""
    pid = tl.program_id(0).to(tl.int64)
    tensor = tl.load(p_chunks + 2 * pid).to(tl.int64)
    chunk = tl.load(p_chunks + 2 * pid + 1).to(tl.int64)
    left = tl.minimum(table_entry(p_table, tensor, SIZE) - chunk * CHUNK, CHUNK)
    if ALIGNED:
        left = tl.multiple_of(left, 16)
    p_grad = table_pointer(p_table, tensor, GRAD, GRAD_TYPE, ALIGNED) + chunk * CHUNK
    b_sum = tl.zeros([BLOCK], tl.float32)
    for offset in range(0, CHUNK, BLOCK):
        o = offset + tl.arange(0, BLOCK)
        b_grad = tl.load(p_grad + o, mask=o < left, other=0.0).to(tl.float32)
        b_sum += b_grad * b_grad
    place = table_entry(p_table, tensor, PARTS) + chunk
    tl.store(p_partials + place, tl.sum(b_sum, 0))


@kernel
@triton.jit
def gradient_norm_kernel(p_partials, p_norm, programs, BLOCK_P: tl.constexpr):
    """One program: the root of the sum of all partial sums."""
    b_sum = tl.zeros([BLOCK_P], tl.float32)
    for start in range(0, programs, BLOCK_P):
        o_p = start + tl.arange(0, BLOCK_P)
        b_sum += tl.load(p_partials + o_p, mask=o_p < programs, other=0.0)
    tl.store(p_norm, tl.sqrt_rn(tl.sum(b_sum, 0)))


class _Gradients:
    """What the norm of gradients of such sizes and dtypes needs, wherever they are."""

    def __init__(
        self, sizes: tuple[int, ...], dtypes: tuple[torch.dtype, ...], device: torch.device
    ):
        *places, self.chunks = itertools.accumulate((cdiv(n, CHUNK) for n in sizes), initial=0)
        types = [(dtype, None) for dtype in dtypes]
        none, decays = [()] * 5, (0.0,) * len(sizes)
        self.tables = TensorTables([*none, tuple(places)], sizes, types, decays, device)


_known: dict[Any, _Gradients] = {}
_DTYPE = operator.attrgetter("dtype")


def _gradients(grads: list[Tensor]) -> _Gradients:
    key = tuple(map(Tensor.numel, grads)), tuple(map(_DTYPE, grads)), grads[0].device
    found = _known.pop(key, None) or _Gradients(*key)
    _known[key] = found  # last used last
    while len(_known) > KEPT:
        del _known[next(iter(_known))]
    return found


@triton_op("gradient_norm")
def _norm(grads):
    if not all(map(Tensor.is_contiguous, grads)):
        grads = [g.contiguous() for g in grads]
    found, first = _gradients(grads), grads[0]
    partials = first.new_empty(found.chunks, dtype=torch.float32)
    norm = first.new_empty((), dtype=torch.float32)
    for launch in found.tables.launches(tuple(map(Tensor.data_ptr, grads))):
        _squares(launch.programs, launch.grad_type, launch.aligned)(
            launch.table, launch.chunks, partials
        )
    _root(found.chunks)(partials, norm)
    return norm


@planned
def _squares(programs, grad_type, aligned):
    return plan(
        gradient_squares_kernel, (programs,),
        GRAD_TYPE=TRITON_TYPES[grad_type], ALIGNED=aligned, CHUNK=CHUNK, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip


@planned
def _root(chunks):
    return plan(gradient_norm_kernel, (1,), chunks, BLOCK_P=BLOCK_P, num_warps=8)


def aot_cases(shape: AotShape) -> list[AotCase]:
    """Gradients of float32 masters, and those of the compute dtype."""
    types = {"fp32": tl.float32, shape.dtype: TRITON_TYPES[_DTYPES[shape.dtype]]}
    squares = [
        AotCase(
            gradient_squares_kernel,
            {"p_table": "*i32", "p_chunks": "*i32", "p_partials": "*fp32"},
            {"GRAD_TYPE": element, "ALIGNED": True, "CHUNK": CHUNK, "BLOCK": BLOCK},
            label=label,
        )
        for label, element in types.items()
    ]
    root = AotCase(
        gradient_norm_kernel,
        {"p_partials": "*fp32", "p_norm": "*fp32", "programs": 62_106},
        {"BLOCK_P": BLOCK_P}, num_warps=8,
    )  # fmt: skip
    return [*squares, root]


_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
