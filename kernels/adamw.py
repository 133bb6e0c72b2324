"""Triton kernel of `adamw`: see eva_fast/ops/adamw.py for the maths.

One launch covers all tensors of a step: a table holds their addresses and sizes, a second one says
which tensor and which chunk of it a program takes. Tables live on the device and are rebuilt only
when an address changes. Tensors whose addresses and sizes are multiples of 16 bytes and elements go
128 bits at a time; the others, if there are any, take a launch of their own.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import kernel, triton_op

CHUNK = 16384  # elements a program
BLOCK = 1024  # elements an iteration: 8 for each of 128 threads
ALIGNMENT = 16

# Columns of the address table: 64-bit addresses as two 32-bit words, low one first, so that a
# 64-bit load in the machine code always means data that missed its 128-bit access.
PARAM, COPY, GRAD, EXP_AVG, EXP_AVG_SQ, STEP, SIZE = (tl.constexpr(i) for i in range(7))
COLUMNS = tl.constexpr(7)


@triton.jit
def table_entry(p_table, tensor, column: tl.constexpr):
    """One 64-bit entry of the address table."""
    p_word = p_table + (tensor * COLUMNS + column) * 2
    low = tl.load(p_word).to(tl.uint32, bitcast=True).to(tl.int64)
    return low | (tl.load(p_word + 1).to(tl.int64) << 32)


@triton.jit
def table_pointer(
    p_table, tensor, column: tl.constexpr, dtype: tl.constexpr, ALIGNED: tl.constexpr
):
    """An address of the table as a pointer."""
    pointer = table_entry(p_table, tensor, column).to(tl.pointer_type(dtype))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@kernel
@triton.jit
def adamw_kernel(
    p_table, p_chunks, p_decays, p_lr, p_grad_scale,
    BETA1: tl.constexpr, BETA2: tl.constexpr, LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr,
    EPS: tl.constexpr, GRAD_TYPE: tl.constexpr, COPY_TYPE: tl.constexpr, ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one chunk of one tensor. COPY_TYPE None: no copies.

    The betas are constants, so that 1 - beta is exact: in fp32 1 - 0.98 is off by 1e-6 of itself.
    """
    pid = tl.program_id(0).to(tl.int64)
    tensor = tl.load(p_chunks + 2 * pid).to(tl.int64)
    start = tl.load(p_chunks + 2 * pid + 1).to(tl.int64) * CHUNK
    size = table_entry(p_table, tensor, SIZE)
    scale = 1.0
    if p_grad_scale is not None:
        scale = tl.load(p_grad_scale)
        # false for infinities and NaN: nothing is read or written, the step is skipped
        size = tl.where(tl.abs(scale) < float("inf"), size, 0)
    if ALIGNED:
        size = tl.multiple_of(size, 16)
    p_param = table_pointer(p_table, tensor, PARAM, tl.float32, ALIGNED)
    p_grad = table_pointer(p_table, tensor, GRAD, GRAD_TYPE, ALIGNED)
    p_exp_avg = table_pointer(p_table, tensor, EXP_AVG, tl.float32, ALIGNED)
    p_exp_avg_sq = table_pointer(p_table, tensor, EXP_AVG_SQ, tl.float32, ALIGNED)
    if COPY_TYPE is not None:
        p_copy = table_pointer(p_table, tensor, COPY, COPY_TYPE, ALIGNED)
    lr = tl.load(p_lr)
    decay = 1.0 - lr * tl.load(p_decays + tensor)
    step = tl.load(table_pointer(p_table, tensor, STEP, tl.float32, False)).to(tl.float64)
    # in fp64: 1 - b^t loses its leading digits in fp32 at the first steps
    correction1 = 1.0 - tl.exp(step * LOG_BETA1)
    correction2 = 1.0 - tl.exp(step * LOG_BETA2)
    step_size = (lr / correction1).to(tl.float32)
    root = tl.sqrt(correction2).to(tl.float32)
    for offset in range(0, CHUNK, BLOCK):
        o = start + offset + tl.arange(0, BLOCK)
        m = o < size
        b_grad = tl.load(p_grad + o, mask=m, other=0.0).to(tl.float32) * scale
        b_param = tl.load(p_param + o, mask=m, other=0.0) * decay
        b_exp_avg = tl.load(p_exp_avg + o, mask=m, other=0.0)
        b_exp_avg += (1.0 - BETA1) * (b_grad - b_exp_avg)
        b_exp_avg_sq = tl.load(p_exp_avg_sq + o, mask=m, other=0.0)
        b_exp_avg_sq = b_exp_avg_sq * BETA2 + (1.0 - BETA2) * b_grad * b_grad
        b_param -= step_size * b_exp_avg / (tl.sqrt(b_exp_avg_sq) / root + EPS)
        tl.store(p_exp_avg + o, b_exp_avg, mask=m)
        tl.store(p_exp_avg_sq + o, b_exp_avg_sq, mask=m)
        tl.store(p_param + o, b_param, mask=m)
        if COPY_TYPE is not None:
            tl.store(p_copy + o, b_param.to(COPY_TYPE), mask=m)


class _Tables:
    """The tables of one launch, on the device."""

    def __init__(self, columns: list[tuple[int, ...]], decays: list[float], device: torch.device):
        chunks = [(t, c) for t, row in enumerate(columns) for c in range(-(-row[-1] // CHUNK))]
        pin = device.type == "cuda"
        table = torch.tensor(columns, dtype=torch.int64).view(torch.int32)
        self.programs = len(chunks)
        self.table, self.chunks, self.decays = (
            (t.pin_memory() if pin else t).to(device, non_blocking=True)
            for t in (
                table,
                torch.tensor(chunks, dtype=torch.int32),
                torch.tensor(decays, dtype=torch.float32),
            )
        )


_KEPT = 8  # gradients come back at the same few addresses, step after step
_cache: dict[Any, _Tables] = {}
_captured: list[_Tables] = []  # a captured CUDA graph goes on reading its tables


def _tables(columns: list[tuple[int, ...]], decays: list[float], device: torch.device) -> _Tables:
    key = (device, tuple(columns), tuple(decays))
    found = _cache.pop(key, None) or _Tables(columns, decays, device)
    _cache[key] = found  # last used last
    while len(_cache) > _KEPT:
        del _cache[next(iter(_cache))]
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured.append(found)
    return found


_TRITON_TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -math.inf


@triton_op("adamw")
def _step(
    params, copies, grads, exp_avgs, exp_avg_sqs, steps, weight_decays, lr, beta1, beta2, eps,
    grad_scale,
):  # fmt: skip
    groups: dict[Any, tuple[list[tuple[int, ...]], list[float]]] = {}
    for i, p in enumerate(params):
        copy = copies[i] if copies else None
        tensors: tuple[Tensor | None, ...] = (p, copy, grads[i], exp_avgs[i], exp_avg_sqs[i])
        row = tuple(t.data_ptr() if t is not None else 0 for t in tensors)
        aligned = not any(value % ALIGNMENT for value in (*row, p.numel()))
        key = (grads[i].dtype, copy.dtype if copy is not None else None, aligned)
        columns, decays = groups.setdefault(key, ([], []))
        columns.append((*row, steps[i].data_ptr(), p.numel()))
        decays.append(weight_decays[i])
    for (grad_dtype, copy_dtype, aligned), (columns, decays) in groups.items():
        tables = _tables(columns, decays, params[0].device)
        if tables.programs:
            adamw_kernel[(tables.programs,)](
                tables.table, tables.chunks, tables.decays, lr, grad_scale,
                BETA1=beta1, BETA2=beta2, LOG_BETA1=_log(beta1), LOG_BETA2=_log(beta2), EPS=eps,
                GRAD_TYPE=_TRITON_TYPES[grad_dtype],
                COPY_TYPE=_TRITON_TYPES[copy_dtype] if copy_dtype is not None else None,
                ALIGNED=aligned, CHUNK=CHUNK, BLOCK=BLOCK, num_warps=4,
            )  # fmt: skip


def aot_cases(shape: AotShape) -> list[AotCase]:
    """The launch that covers a whole model: 16-bit gradients and copies, and all fp32."""
    element = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": None}[shape.dtype]
    pointers = {"p_table": "*i32", "p_chunks": "*i32"}
    pointers |= {f"p_{name}": "*fp32" for name in ("decays", "lr", "grad_scale")}
    constants = {"BETA1": 0.9, "BETA2": 0.98, "LOG_BETA1": _log(0.9), "LOG_BETA2": _log(0.98)}
    constants |= {"EPS": 1e-6, "ALIGNED": True, "CHUNK": CHUNK, "BLOCK": BLOCK}
    types = ((element, element, "16 bit"), (tl.float32, None, "fp32"))[element is None :]
    return [
        AotCase(
            adamw_kernel, pointers, {**constants, "GRAD_TYPE": grad, "COPY_TYPE": copy}, label=label
        )
        for grad, copy, label in types
    ]
