"""The last attention of a network of whose tokens only some are wanted.

Queries, attention rows and projection are computed for the wanted tokens alone, keys and values for
all: exact, and with an MLP that sees no others, half a block saved. EVA's loss reads only masked
patches.
"""

import torch

from eva_fast.layers.add_norm import add_norm, add_norm_backward, own_view, rows_of
from eva_fast.ops.linear import matmul, weight_gradient
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
        q = matmul(masked_gather_forward(y, mask), qkv_used[:dim].t(), bias_q)
        q = q.view(batch, -1, num_heads, head_dim)
        kv = matmul(rows_of(y), qkv_used[dim:].t(), bias_kv)
        kv = kv.view(batch, tokens, 2, num_heads, head_dim)
        out, lse = packed_attention_forward(q, kv, head_dim**-0.5)
        result = matmul(rows_of(out.flatten(2)), proj_used.t())
        kept = None if recomputes_output(kv) else out
        ctx.save_for_backward(
            total, mean, rstd, q, kv, kept, lse, scale, norm_weight, norm_bias, qkv_used, proj_used,
            mask,
        )  # fmt: skip
        ctx.weight_dtypes = qkv_weight.dtype, proj_weight.dtype
        ctx.bias_dtype = None if q_bias is None else q_bias.dtype
        rows = own_view(masked_gather_forward(total, mask), batch, -1, dim)
        return rows, own_view(result, batch, -1, dim)

    @staticmethod
    def backward(ctx, drows, dresult):
        total, mean, rstd, q, kv, out, lse, scale, norm_weight, norm_bias, wqkv, wproj, mask = (
            ctx.saved_tensors
        )
        tokens, dim = total.shape[1:]
        head_dim = q.shape[3]
        dresult = rows_of(dresult)
        dout = matmul(dresult, wproj).view(q.shape)
        has_bias = ctx.bias_dtype is not None
        dq, dkv, out, bias_sums = packed_attention_backward(
            dout, q, kv, out, lse, head_dim**-0.5, want_sums=has_bias
        )
        dproj = weight_gradient(dresult, rows_of(out.flatten(2)), ctx.weight_dtypes[1])
        dq, dkv = dq.view(-1, dim), dkv.view(-1, 2 * dim)
        dy = matmul(dkv, wqkv[dim:]).view(total.shape)
        dy += masked_gather_backward(matmul(dq, wqkv[:dim]), mask, tokens)
        dtotal = masked_gather_backward(rows_of(drows), mask, tokens)
        pending, y = add_norm_backward(
            ctx, dy, dtotal, total, mean, rstd, norm_weight, norm_bias, scale
        )
        dtype = ctx.weight_dtypes[0]
        dwqkv = torch.cat(
            (
                weight_gradient(dq, masked_gather_forward(y, mask), dtype),
                weight_gradient(dkv, rows_of(y), dtype),
            )
        )
        biases = bias_sums.to(ctx.bias_dtype) if has_bias else (None, None)
        return *pending, dwqkv, *biases, dproj, None, None, None, None, None, None
