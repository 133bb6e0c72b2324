"""Attention with a bias of the scores: the kernels of `packed_attention`, which add a tile of the bias
(and of a window's mask) to a tile of scores, and one more for the bias's gradient."""

import functools

from eva_fast.kernels.attention_tiles import Bias, limits, same_strides, sizes_of
from eva_fast.kernels.biased_attention_dbias import dbias_options, launch_dbias
from eva_fast.kernels.launch import triton_op
from eva_fast.kernels.packed_attention import run_forward
from eva_fast.kernels.packed_attention_backward import run_backward
from eva_fast.kernels.tiles import capability, fastest


@triton_op("biased_attention", limits=limits)
def forward(q, k, v, bias, mask, scale):
    return run_forward("biased_attention_forward", q, k, v, scale, Bias(bias, mask))


@triton_op("biased_attention_backward", limits=limits)
def _backward(dout, q, k, v, bias, mask, out, lse, scale, dq, dk, dv, dbias, again):
    if out is None:
        out = again.copy_(forward(q, k, v, bias, mask, scale)[0])
    delta, sums, _ = run_backward(
        "biased_attention", dout, q, k, v, out, lse, scale, dq, dk, dv, Bias(bias, mask)
    )
    k, v = same_strides(k, v)
    sizes = q.shape[1], k.shape[1], q.shape[-1], q.element_size()
    options = functools.partial(dbias_options, *sizes, capability(q.device))
    run = functools.partial(launch_dbias, dout, q, k, v, bias, mask, lse, delta, scale, dbias)
    run(fastest("biased_attention_dbias", sizes_of(q, k), q.device, options, run))
    return sums
