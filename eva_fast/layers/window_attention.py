"""Cosine attention in windows as one branch with its own backward, and its bias of distances.

    qkv = x Wqkv^T + (q_bias, 0, v_bias);  q', k': unit heads, q' times its gain (`unit_heads`)
    a = softmax(q' k'^T + bias (+ mask)) v in each window;  h = a Wproj^T + b;  x' = x + scale LN(h)
    bias[h, i, j] = 16 sigmoid(rpe_mlp(offset of i and j))[h]

Swin V2, Liu et al. 2022, section 3, and Feature Distillation's code, whose names the parameters have.
Tokens come window after window; a shifted block takes them in its own order and gives them back. The
branch keeps x, unit q and k with v, h, row statistics and log-sum-exp, and the attention's output
where that is not computed again.
"""

import math

import torch
from torch import Tensor, nn

from eva_fast.layers.add_norm import rows_of
from eva_fast.layers.linear import Linear
from eva_fast.layers.post_norm import add_normed, add_normed_backward
from eva_fast.layers.unit_heads import from_unit_heads_, to_unit_heads_
from eva_fast.layers.window import Windows, inverse, register_constants
from eva_fast.ops.biased_attention import biased_attention_backward, biased_attention_forward
from eva_fast.ops.checks import statistics_dtype
from eva_fast.ops.linear import matmul, weight_gradient
from eva_fast.ops.packed_attention import recomputes_output
from eva_fast.ops.relative_bias import relative_bias, sort_pairs

RPE_HIDDEN = 512
STEEPEST_BIAS = 16.0


class _WindowAttentionBranch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x, scale, order, back_order, mask, bias, logit_scale, qkv_weight, q_bias, v_bias,
        proj_weight, proj_bias, norm_weight, norm_bias, qkv_copy, proj_copy, window, eps,
    ):  # fmt: skip
        qkv_used = qkv_weight if qkv_copy is None else qkv_copy
        proj_used = proj_weight if proj_copy is None else proj_copy
        batch, tokens, dim = x.shape
        y = x if order is None else x.index_select(1, order)
        packed_bias = torch.cat((q_bias, torch.zeros_like(q_bias), v_bias)).to(x.dtype)
        qkv = matmul(rows_of(y), qkv_used.t(), packed_bias)
        heads = logit_scale.numel()
        packed = qkv.view(-1, window, 3, heads, dim // heads)
        factor = to_unit_heads_(packed, logit_scale)
        out, lse = biased_attention_forward(None, packed, bias, mask, 1.0)
        h = matmul(rows_of(out.flatten(2)), proj_used.t(), proj_bias.to(x.dtype))
        h = h.view(batch, tokens, dim)
        h = h if order is None else h.index_select(1, back_order)
        total, mean, rstd = add_normed(x, h, scale, norm_weight, norm_bias, eps)
        kept = None if recomputes_output(packed) else out
        ctx.save_for_backward(
            x, scale, order, back_order, mask, bias, logit_scale, packed, factor, kept, lse, h, mean,
            rstd, norm_weight, norm_bias, qkv_used, proj_used,
        )  # fmt: skip
        ctx.weight_dtypes = qkv_weight.dtype, proj_weight.dtype
        ctx.bias_dtypes = q_bias.dtype, proj_bias.dtype
        return total

    @staticmethod
    def backward(ctx, dtotal):
        (
            x, scale, order, back_order, mask, bias, logit_scale, packed, factor, out, lse, h, mean,
            rstd, norm_weight, norm_bias, wqkv, wproj,
        ) = ctx.saved_tensors  # fmt: skip
        _, window, _, heads, head_dim = packed.shape
        dim = heads * head_dim
        dh, dnorm_weight, dnorm_bias, dproj_bias = add_normed_backward(
            dtotal, h, mean, rstd, scale, norm_weight, norm_bias
        )
        dh = rows_of(dh if order is None else dh.index_select(1, order))
        dout = matmul(dh, wproj).view(-1, window, heads, head_dim)
        _, dpacked, out, _, dbias = biased_attention_backward(
            dout, None, packed, bias, mask, out, lse, 1.0
        )
        dproj = weight_gradient(dh, rows_of(out.flatten(2)), ctx.weight_dtypes[1])
        dlogit_scale = from_unit_heads_(dpacked, packed, factor, logit_scale)
        dqkv = dpacked.view(-1, 3 * dim)
        dq_bias, dv_bias = (
            dqkv[:, start : start + dim].sum(0, dtype=ctx.bias_dtypes[0]) for start in (0, 2 * dim)
        )
        y = x if order is None else x.index_select(1, order)
        dqkv_weight = weight_gradient(dqkv, rows_of(y), ctx.weight_dtypes[0])
        dx = matmul(dqkv, wqkv).view(x.shape)
        dx = dx if order is None else dx.index_select(1, back_order)
        return (
            dx.add_(dtotal), None, None, None, None, dbias, dlogit_scale, dqkv_weight, dq_bias,
            dv_bias, dproj, dproj_bias.to(ctx.bias_dtypes[1]), dnorm_weight, dnorm_bias, None, None,
            None, None,
        )  # fmt: skip


class WindowAttention(nn.Module):
    """Cosine attention in the windows of a map, with the norm after it: `attn(x, norm, scale)` is
    x + scale norm(attention(x)), of x [B, N, C] in the order of `Windows(side, size)`."""

    relative_index: Tensor
    log_offsets: Tensor
    pair_order: Tensor
    pair_starts: Tensor
    mask: Tensor | None
    order: Tensor | None
    back_order: Tensor | None

    def __init__(self, dim: int, num_heads: int, windows: Windows):
        super().__init__()
        self.windows = windows
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        self.rpe_mlp = position_mlp(num_heads)
        self.proj = Linear(dim, dim)
        index, offsets = windows.relative_index(), windows.log_offsets()
        pair_order, pair_starts = sort_pairs(index, len(offsets))
        order = back_order = None
        if windows.shift:
            resting = inverse(Windows(windows.side, windows.size).order())
            order = resting[windows.order()]
            back_order = inverse(order)
        register_constants(
            self, relative_index=index, log_offsets=offsets, pair_order=pair_order,
            pair_starts=pair_starts, mask=windows.mask(), order=order, back_order=back_order,
        )  # fmt: skip

    def forward(self, x: Tensor, norm: nn.LayerNorm, scale: Tensor | None) -> Tensor:
        qkv, proj = self.qkv.matrix(x.dtype), self.proj.matrix(x.dtype)
        pairs = self.relative_index, self.pair_order, self.pair_starts
        bias = relative_bias(position_table(self), *pairs)
        return _WindowAttentionBranch.apply(
            x, scale, self.order, self.back_order,
            None if self.mask is None else self.mask.to(bias.dtype), bias, self.logit_scale,
            qkv.weight, self.q_bias, self.v_bias, proj.weight, self.proj.bias, norm.weight,
            norm.bias, qkv.copy, proj.copy, self.windows.area, norm.eps,
        )  # fmt: skip


def position_mlp(num_heads: int) -> nn.Sequential:
    """From an offset (y, x) to a number for each head."""
    return nn.Sequential(
        nn.Linear(2, RPE_HIDDEN), nn.ReLU(), nn.Linear(RPE_HIDDEN, num_heads, bias=False)
    )


def position_table(attention: nn.Module) -> Tensor:
    """16 sigmoid(`rpe_mlp`) of every offset, [(2 size - 1)^2, H], float32 at least."""
    rows: Tensor = attention.rpe_mlp(attention.log_offsets)  # type: ignore[operator]
    return STEEPEST_BIAS * torch.sigmoid(rows.to(statistics_dtype(rows)))
