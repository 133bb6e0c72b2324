"""C++ kernels of `packed_attention`: csrc/ops/packed_attention.h."""

import ctypes
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from eva_fast.ops.native.calls import KERNELS, at, float32_vectors, mirrored, native_op


@mirrored
class Heads(ctypes.Structure):
    """[B, T, H, d] with a dense last dimension, as csrc/ops/packed_attention.h has it."""

    _fields_ = (("data", c_void_p), ("batch", c_int64), ("token", c_int64), ("head", c_int64))


def heads_at(tensor: Tensor | None):
    """A view [B, T, H, d] as the kernels take it; null for None."""
    if tensor is None:
        return ctypes.byref(Heads())
    return ctypes.byref(Heads(tensor.data_ptr(), *tensor.stride()[:3]))


@native_op("packed_attention", limits=float32_vectors)
def _forward(q, k, v, scale):
    batch, queries, heads, width = q.shape
    out, lse = torch.empty(q.shape), torch.empty(batch, heads, queries)
    KERNELS["packed_attention"](
        batch, heads, queries, k.shape[1], width, *map(heads_at, (q, k, v, out)), at(lse), scale,
        torch.get_num_threads(),
    )  # fmt: skip
    return out, lse


@native_op("packed_attention_backward", limits=float32_vectors)
def _backward(dout, q, k, v, out, lse, scale, dq, dk, dv, again):
    batch, queries, heads, width = q.shape
    again = again if out is None else None
    KERNELS["packed_attention_backward"](
        batch, heads, queries, k.shape[1], width, *map(heads_at, (dout, q, k, v)), at(lse),
        *map(heads_at, (dq, dk, dv, again)), scale, torch.get_num_threads(),
    )  # fmt: skip
