"""Attention, backward: one kernel for dq and one for dk and dv, no atomics.

    delta_i = sum_c dout_ic out_ic,   p_ij = exp(s_ij - lse_i),   dp = dout v^T
    ds = p * (dp - delta),   dq = scale ds k,   dk = scale ds^T q,   dv = p^T dout

(Dao 2023, FlashAttention-2, algorithm 2.) The dq kernel owns a tile of queries, walks over the keys
and writes delta for the second kernel, which owns a tile of keys and walks over the queries.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from eva_fast.kernels.attention_tiles import (
    IN_16_BITS,
    NO_BIAS,
    Bias,
    Eight,
    limits,
    same_strides,
    sizes_of,
)
from eva_fast.kernels.launch import triton_op
from eva_fast.kernels.packed_attention import forward
from eva_fast.kernels.packed_attention_dkv import dkv_options, launch_dkv
from eva_fast.kernels.packed_attention_dq import dq_options, launch_dq
from eva_fast.kernels.partial_sums import sum_into
from eva_fast.kernels.tiles import capability, fastest


@triton_op("packed_attention_backward", limits=limits)
def _backward(dout, q, k, v, out, lse, scale, dq, dk, dv, again):
    if out is None:
        out = again.copy_(forward(q, k, v, scale)[0])
    _, sums, _ = run_backward("attention", dout, q, k, v, out, lse, scale, dq, dk, dv)
    return sums


def run_backward(
    name: str, dout, q, k, v, out, lse, scale, dq, dk, dv, bias: Bias = NO_BIAS,
    eight: Eight = IN_16_BITS,
) -> tuple[Tensor, Callable[[], Tensor], tuple[Tensor | None, Tensor | None]]:  # fmt: skip
    """Fills dq, dk and dv by the fastest tiles, and the columns of `eight`; name: what tiles are kept
    under. Returns delta, what gives the sums of dq and dv, float32 [2, H d], and with `eight` parts of
    the largest magnitudes, of dq and of dk and dv."""
    k, v = same_strides(k, v)
    own_k, own_v = (dk, dv) if dk.stride() == dv.stride() else map(torch.empty_like, (k, v))
    delta = torch.empty_like(lse)
    _, queries, _, head_dim = q.shape
    shape, device = sizes_of(q, k), q.device
    sizes = queries, k.shape[1], head_dim, q.element_size()
    run = functools.partial(
        launch_dq, dout, q, k, v, out, lse, delta, scale, dq, bias=bias, eight=eight
    )
    options = lambda: dq_options(*sizes, capability(device))  # noqa: E731
    sums_q, largest_q = run(fastest(f"{name}_dq", shape, device, options, run))
    run = functools.partial(
        launch_dkv, dout, q, k, v, lse, delta, scale, own_k, own_v, bias=bias, eight=eight
    )
    options = lambda: dkv_options(*sizes, capability(device), bias.scores is not None)  # noqa: E731
    sums_v, largest_kv = run(fastest(f"{name}_dkv", shape, device, options, run))
    if own_k is not dk:
        dk.copy_(own_k)
        dv.copy_(own_v)
    largest = largest_q, largest_kv
    return delta, functools.partial(_total, (sums_q, sums_v)), largest


def _total(sums: tuple[Tensor, Tensor]) -> Tensor:
    """Float32 [2, H d] from the partial sums of dq and of dv."""
    total = sums[0].new_empty((2, sums[0].shape[-1]))
    for row, partials in zip(total, sums):
        sum_into([row], partials)
    return total
