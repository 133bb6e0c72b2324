"""Triton kernel of `adamw`: see eva_fast/ops/adamw.py for the maths.

One launch covers all tensors of a step, found through tables on the device (`tensor_tables`).
"""

import math
import operator
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from eva_fast.kernels.aot_case import AotCase, AotShape
from eva_fast.kernels.launch import kernel, triton_op
from eva_fast.kernels.quantise_fp8 import magnitude_bits
from eva_fast.kernels.tensor_tables import (
    COPY,
    EXP_AVG,
    EXP_AVG_SQ,
    GRAD,
    KEPT,
    PARAM,
    PARTS,
    SIZE,
    STEP,
    TRITON_TYPES,
    TensorTables,
    table_entry,
    table_pointer,
)
from eva_fast.ops.largest import CHUNK

BLOCK = 1024  # elements an iteration: 8 for each of 128 threads


@kernel
@triton.jit
def adamw_kernel(
    p_table, p_chunks, p_decays, p_lr, p_grad_scale,
    BETA1: tl.constexpr, BETA2: tl.constexpr, LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr,
    EPS: tl.constexpr, GRAD_TYPE: tl.constexpr, COPY_TYPE: tl.constexpr, ALIGNED: tl.constexpr,
    LARGEST: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one chunk of one tensor. COPY_TYPE None: no copies. LARGEST: writes the largest
    magnitude of the chunk's new values.

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
    if LARGEST:
        b_most = tl.zeros([BLOCK], tl.int32)
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
        if LARGEST:
            b_most = tl.maximum(b_most, tl.where(m, magnitude_bits(b_param), 0))
    if LARGEST:
        p_part = table_pointer(p_table, tensor, PARTS, tl.float32, False) + start // CHUNK
        # of a skipped step nothing is written
        tl.store(p_part, tl.max(b_most, 0).to(tl.float32, bitcast=True), mask=start < size)


_known: dict[Any, TensorTables] = {}
_DTYPE = operator.attrgetter("dtype")


def _tensors(
    params, copies, grads, exp_avgs, exp_avg_sqs, steps, weight_decays, largest
) -> TensorTables:
    pointers = [
        tuple(map(Tensor.data_ptr, tensors))
        for tensors in (params, copies, exp_avgs, exp_avg_sqs, steps, largest)
    ]
    sizes = tuple(map(Tensor.numel, params))
    types = tuple(map(_DTYPE, grads)), tuple(map(_DTYPE, copies))
    device, decays = params[0].device, tuple(weight_decays)
    key = (device, decays, sizes, types, *pointers)
    found = _known.pop(key, None)
    if found is None:
        kinds = list(zip(types[0], types[1] or [None] * len(params), strict=True))
        found = TensorTables(pointers, sizes, kinds, decays, device)
    _known[key] = found  # last used last
    while len(_known) > KEPT:
        del _known[next(iter(_known))]
    return found


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -math.inf


@triton_op("adamw")
def _step(
    params, copies, grads, exp_avgs, exp_avg_sqs, steps, weight_decays, lr, beta1, beta2, eps,
    grad_scale, largest,
):  # fmt: skip
    tensors = _tensors(params, copies, grads, exp_avgs, exp_avg_sqs, steps, weight_decays, largest)
    for launch in tensors.launches(tuple(map(Tensor.data_ptr, grads))):
        copy_type = launch.copy_type
        adamw_kernel[(launch.programs,)](
            launch.table, launch.chunks, launch.decays, lr, grad_scale,
            BETA1=beta1, BETA2=beta2, LOG_BETA1=_log(beta1), LOG_BETA2=_log(beta2), EPS=eps,
            GRAD_TYPE=TRITON_TYPES[launch.grad_type],
            COPY_TYPE=TRITON_TYPES[copy_type] if copy_type is not None else None,
            ALIGNED=launch.aligned, LARGEST=launch.largest, CHUNK=CHUNK, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip


def aot_cases(shape: AotShape) -> list[AotCase]:
    """The launch that covers a whole model: 16-bit gradients and copies, and all fp32."""
    element = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": None}[shape.dtype]
    pointers = {"p_table": "*i32", "p_chunks": "*i32"}
    pointers |= {f"p_{name}": "*fp32" for name in ("decays", "lr", "grad_scale")}
    constants = {"BETA1": 0.9, "BETA2": 0.98, "LOG_BETA1": _log(0.9), "LOG_BETA2": _log(0.98)}
    constants |= {"EPS": 1e-6, "ALIGNED": True, "CHUNK": CHUNK, "BLOCK": BLOCK}
    types = (
        (element, element, False, "16 bit"),
        (element, None, True, "for 8 bits"),
        (tl.float32, None, False, "fp32"),
    )
    types = types[2 if element is None else 0 :]
    return [
        AotCase(
            adamw_kernel,
            pointers,
            {**constants, "GRAD_TYPE": grad, "COPY_TYPE": copy, "LARGEST": largest},
            label=label,
        )
        for grad, copy, largest, label in types
    ]
