"""C++ kernels of `biased_attention`: csrc/ops/biased_attention.h."""

import torch

from eva_fast.ops.native.calls import KERNELS, at, float32_vectors, native_op
from eva_fast.ops.native.packed_attention import heads_at

# Tasks that the backward is cut into, as heads of a group of images: enough to keep any CPU's cores
# busy to the end. Each group has a sum of its own, the bias's size.
TASKS = 64


@native_op("biased_attention", limits=float32_vectors)
def _forward(q, k, v, bias, mask, scale):
    batch, queries, heads, width = q.shape
    out, lse = torch.empty(q.shape), torch.empty(batch, heads, queries)
    KERNELS["biased_attention"](
        batch, heads, queries, k.shape[1], width, *map(heads_at, (q, k, v)), at(bias), at(mask),
        1 if mask is None else len(mask), heads_at(out), at(lse), scale, torch.get_num_threads(),
    )  # fmt: skip
    return out, lse


@native_op("biased_attention_backward", limits=float32_vectors)
def _backward(dout, q, k, v, bias, mask, out, lse, scale, dq, dk, dv, dbias, again):
    batch, queries, heads, width = q.shape
    groups = min(batch, -(-TASKS // heads))
    partials = dbias if groups == 1 else torch.empty(groups, *bias.shape)
    KERNELS["biased_attention_backward"](
        batch, heads, queries, k.shape[1], width, *map(heads_at, (dout, q, k, v)), at(bias),
        at(mask), 1 if mask is None else len(mask), at(lse), *map(heads_at, (dq, dk, dv)),
        at(partials), groups, at(dbias), heads_at(again if out is None else None), scale,
        torch.get_num_threads(),
    )  # fmt: skip
