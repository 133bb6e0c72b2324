"""The last attention of a network of whose tokens only some are wanted.

Queries, attention rows and projection are computed for the wanted tokens alone, keys and values for
all: exact, and with an MLP that sees no others, half a block saved. EVA's loss reads only masked
patches.
"""

import torch

from eva_fast.layers.add_norm import add_norm, add_norm_backward, rows_of
from eva_fast.layers.products import back, held, hold, part, prepared, times, weight_gradient
from eva_fast.ops.checks import as_shaped, own_view
from eva_fast.ops.masked_gather import masked_gather_backward, masked_gather_forward
from eva_fast.ops.packed_attention import (
    packed_attention_backward,
    packed_attention_forward,
    recomputes_output,
)


class MaskedAttentionBranch(torch.autograd.Function):
    """Attention whose queries are the masked tokens; keys and values are all tokens."""

    @staticmethod
    def forward(
        ctx, x, branch, branch_bias, scale, norm_weight, norm_bias, qkv_weight, q_bias, v_bias,
        proj_weight, qkv_copy, packed_bias, proj_copy, num_heads, eps, mask,
    ):  # fmt: skip
        qkv_used = qkv_weight if qkv_copy is None else qkv_copy
        proj_used = proj_weight if proj_copy is None else proj_copy
        total, y, mean, rstd = add_norm(
            ctx, x, branch, branch_bias, scale, norm_weight, norm_bias, eps
        )
        batch, tokens, dim = total.shape
        head_dim = dim // num_heads
        bias_q, bias_kv = (None, None) if packed_bias is None else packed_bias.split((dim, 2 * dim))
        kv, y_scale = times(y, part(qkv_used, dim, 3 * dim), bias_kv)
        asking = masked_gather_forward(y, mask)
        q, _ = times(asking, part(qkv_used, 0, dim), bias_q, y_scale)
        q = q.view(batch, -1, num_heads, head_dim)
        kv = kv.view(batch, tokens, 2, num_heads, head_dim)
        out, lse = packed_attention_forward(q, kv, head_dim**-0.5)
        result, out_scale = times(out.view(batch, -1, dim), proj_used)
        kept = None if recomputes_output(kv) else out
        ctx.save_for_backward(
            total, mean, rstd, q, kv, kept, lse, scale, norm_weight, norm_bias, mask, y_scale,
            out_scale, *hold(ctx, qkv_used, proj_used),
        )  # fmt: skip
        ctx.weight_dtypes = qkv_weight.dtype, proj_weight.dtype
        ctx.bias_dtype = None if q_bias is None else q_bias.dtype
        rows = own_view(masked_gather_forward(total, mask), batch, -1, dim)
        return rows, as_shaped(result, rows)

    @staticmethod
    def backward(ctx, drows, dresult):
        (
            total, mean, rstd, q, kv, out, lse, scale, norm_weight, norm_bias, mask, y_scale,
            out_scale, *weights,
        ) = ctx.saved_tensors  # fmt: skip
        wqkv, wproj = held(ctx, *weights)
        tokens, dim = total.shape[1:]
        head_dim = q.shape[3]
        dresult = prepared(dresult, wproj)
        dout = back(dresult, wproj, q.dtype).view(q.shape)
        has_bias = ctx.bias_dtype is not None
        dq, dkv, out, bias_sums = packed_attention_backward(
            dout, q, kv, out, lse, head_dim**-0.5, want_sums=has_bias
        )
        dproj = weight_gradient(dresult, out.view(-1, dim), ctx.weight_dtypes[1], out_scale)
        w_q, w_kv = part(wqkv, 0, dim), part(wqkv, dim, 3 * dim)
        dq, dkv = prepared(dq.view(-1, dim), w_q), prepared(dkv.view(-1, 2 * dim), w_kv)
        dy = back(dkv, w_kv, q.dtype).view_as(total)
        dy += masked_gather_backward(back(dq, w_q, q.dtype), mask, tokens)
        dtotal = masked_gather_backward(rows_of(drows), mask, tokens)
        pending, y = add_norm_backward(
            ctx, dy, dtotal, total, mean, rstd, norm_weight, norm_bias, scale
        )
        dtype = ctx.weight_dtypes[0]
        dwqkv = torch.cat(
            (
                weight_gradient(dq, masked_gather_forward(y, mask), dtype, y_scale),
                weight_gradient(dkv, rows_of(y), dtype, y_scale),
            )
        )
        biases = bias_sums.to(ctx.bias_dtype).unbind() if has_bias else (None, None)
        return *pending, dwqkv, *biases, dproj, None, None, None, None, None, None
