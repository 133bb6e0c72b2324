"""C++ kernel of `adamw`: csrc/ops/adamw.h."""

import ctypes
from ctypes import c_double, c_int32, c_int64, c_void_p

import torch

from eva_fast.ops.largest import write
from eva_fast.ops.native.calls import CODES, KERNELS, at, mirrored, native_op, vector


@mirrored
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


@native_op("adamw")
def _step(
    params, copies, grads, exp_avgs, exp_avg_sqs, steps, weight_decays, lr, beta1, beta2, eps,
    grad_scale, largest,
):  # fmt: skip
    table = (AdamTensor * len(params))()
    for i, p in enumerate(params):
        copy = copies[i] if copies else None
        table[i] = AdamTensor(
            p.numel(), at(p), at(exp_avgs[i]), at(exp_avg_sqs[i]), at(grads[i]), at(copy),
            at(steps[i]), CODES[grads[i].dtype], 0 if copy is None else CODES[copy.dtype],
            weight_decays[i],
        )  # fmt: skip
    lr, grad_scale = lr.float(), vector(grad_scale)
    KERNELS["adamw"](
        ctypes.byref(table), len(params), at(lr), beta1, beta2, eps, at(grad_scale),
        torch.get_num_threads(),
    )  # fmt: skip
    for parts, p in zip(largest, params):
        write(parts, p)
