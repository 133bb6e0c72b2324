"""Self-attention as one branch with its own backward: norm, qkv, attention, projection.

    x' = x + scale (branch + bias);  y = LN(x');  qkv = y Wqkv^T + (q_bias, 0, v_bias)
    out = softmax(q k^T / sqrt d) v;  result: x', out Wproj^T  (bias pending)

A plain block keeps some twenty tensors for the backward pass. A branch keeps the residual stream,
the row statistics, qkv, the attention output (not on CPUs) and the log-sum-exp; the norm is
computed again, inside an op that reads its input anyway. The result is not added: it is returned
with the stream (`Stream`), and the next norm does the addition, the drop-path factor and the bias
in the same pass. Only q and v have biases, so only their gradients are summed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eva_fast.layers.add_norm import add_norm, add_norm_backward, own_view, rows_of
from eva_fast.layers.linear import KeepsCopies, Linear, Matrix, can_keep, refreshed
from eva_fast.layers.masked_tail import MaskedAttentionBranch
from eva_fast.layers.products import back, held, hold, prepared, times, weight_gradient
from eva_fast.layers.stream import Stream, leaving
from eva_fast.ops import copies
from eva_fast.ops.packed_attention import (
    packed_attention_backward,
    packed_attention_forward,
    recomputes_output,
)


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """Parameters of an attention branch."""

    norm_weight: Tensor
    norm_bias: Tensor
    qkv: Matrix
    q_bias: Tensor | None
    v_bias: Tensor | None
    packed_bias: Tensor | None
    """[3 D] = (q_bias, 0, v_bias) in the compute dtype, detached; None without biases."""
    proj: Matrix
    proj_bias: Tensor | None
    num_heads: int
    eps: float


class _AttentionBranch(torch.autograd.Function):
    """Self-attention of all tokens."""

    @staticmethod
    def forward(
        ctx, x, branch, branch_bias, scale, norm_weight, norm_bias, qkv_weight, q_bias, v_bias,
        proj_weight, qkv_copy, packed_bias, proj_copy, num_heads, eps,
    ):  # fmt: skip
        qkv_used = qkv_weight if qkv_copy is None else qkv_copy
        proj_used = proj_weight if proj_copy is None else proj_copy
        total, y, mean, rstd = add_norm(
            ctx, x, branch, branch_bias, scale, norm_weight, norm_bias, eps
        )
        batch, tokens, dim = total.shape
        qkv, y_scale = times(rows_of(y), qkv_used, packed_bias)
        packed = qkv.view(batch, tokens, 3, num_heads, dim // num_heads)
        out, lse = packed_attention_forward(None, packed, (dim // num_heads) ** -0.5)
        result, out_scale = times(rows_of(out.flatten(2)), proj_used)
        kept = None if recomputes_output(packed) else out
        ctx.save_for_backward(
            total, mean, rstd, packed, kept, lse, scale, norm_weight, norm_bias, y_scale, out_scale,
            *hold(ctx, qkv_used, proj_used),
        )  # fmt: skip
        ctx.weight_dtypes = qkv_weight.dtype, proj_weight.dtype
        ctx.bias_dtype = None if q_bias is None else q_bias.dtype
        return total, own_view(result, batch, tokens, dim)

    @staticmethod
    def backward(ctx, dtotal, dresult):
        (
            total, mean, rstd, packed, out, lse, scale, norm_weight, norm_bias, y_scale, out_scale,
            *weights,
        ) = ctx.saved_tensors  # fmt: skip
        wqkv, wproj = held(ctx, *weights)
        batch, tokens, _, heads, head_dim = packed.shape
        dim = heads * head_dim
        dresult = prepared(rows_of(dresult), wproj)
        dout = back(dresult, wproj, packed.dtype).view(batch, tokens, heads, head_dim)
        has_bias = ctx.bias_dtype is not None
        _, dpacked, out, bias_sums = packed_attention_backward(
            dout, None, packed, out, lse, head_dim**-0.5, want_sums=has_bias
        )
        dproj = weight_gradient(dresult, rows_of(out.flatten(2)), ctx.weight_dtypes[1], out_scale)
        dqkv = prepared(dpacked.view(-1, 3 * dim), wqkv)
        dy = back(dqkv, wqkv, packed.dtype).view(total.shape)
        pending, y = add_norm_backward(
            ctx, dy, dtotal, total, mean, rstd, norm_weight, norm_bias, scale
        )
        dwqkv = weight_gradient(dqkv, rows_of(y), ctx.weight_dtypes[0], y_scale)
        biases = bias_sums.to(ctx.bias_dtype) if has_bias else (None, None)
        return *pending, dwqkv, *biases, dproj, None, None, None, None, None


def attention_branch(
    stream: Stream, weights: AttentionWeights, tokens: Tensor | None = None
) -> Stream:
    """Adds what is pending in `stream` and runs norm, qkv, attention and projection.

    Returns (x', projection without bias, its bias). The caller sets the drop-path scale.
    tokens: int32 [B, K], rows of x; then only these ask and come out, with the values the full
    branch gives them: x' and branch are [B, K, D].
    """
    w = weights
    arguments = (
        *stream, w.norm_weight, w.norm_bias, w.qkv.weight, w.q_bias, w.v_bias, w.proj.weight,
        w.qkv.copy, w.packed_bias, w.proj.copy, w.num_heads, w.eps,
    )  # fmt: skip
    if tokens is None:
        x, branch = _AttentionBranch.apply(*arguments)
    else:
        # the gather counts patches, from the row after CLS
        x, branch = MaskedAttentionBranch.apply(*arguments, tokens - 1)
    return Stream(x, branch, w.proj_bias)


class Attention(KeepsCopies, nn.Module):
    """Multi-head attention with q and v biases and none for k, as in BEiT and EVA.

    It takes the norm before it as an argument, whose parameters belong to the block:
    `attn(stream, norm, tokens) -> Stream`.
    """

    _kept: tuple[Tensor, Tensor, Tensor] | None = None
    """(q_bias, 0, v_bias) in the compute dtype as one vector [3 D], and its first and last third,
    which are copies of the parameters."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = Linear(dim, dim)

    def forward(self, stream: Stream, norm: nn.LayerNorm, tokens: Tensor | None = None) -> Stream:
        """`attention_branch` with this module's parameters."""
        dtype = stream.x.dtype
        weights = AttentionWeights(
            norm_weight=norm.weight,
            norm_bias=norm.bias,
            qkv=self.qkv.operand(dtype),
            q_bias=self.q_bias,
            v_bias=self.v_bias,
            packed_bias=self._packed_bias(dtype),
            proj=self.proj.operand(dtype),
            proj_bias=self.proj.bias,
            num_heads=self.num_heads,
            eps=norm.eps,
        )
        return leaving(self, attention_branch(stream, weights, tokens))

    def keep_copies(self, dtype: torch.dtype) -> dict[Tensor, Tensor]:
        self.drop_copies()
        if not (can_keep(self.q_bias) and can_keep(self.v_bias)):
            return {}
        dim = self.q_bias.shape[0]
        packed = self.q_bias.new_zeros(3 * dim, dtype=dtype)
        q_copy = copies.write(packed[:dim], self.q_bias)
        v_copy = copies.write(packed[2 * dim :], self.v_bias)
        self._kept = packed, q_copy, v_copy
        return {self.q_bias: q_copy, self.v_bias: v_copy}

    def _packed_bias(self, dtype: torch.dtype) -> Tensor:
        if self._kept is not None:
            packed, q_copy, v_copy = self._kept
            if (
                packed.dtype == dtype
                and refreshed(q_copy, self.q_bias)
                and refreshed(v_copy, self.v_bias)
            ):
                return packed
        q_bias, v_bias = self.q_bias.detach(), self.v_bias.detach()
        return torch.cat((q_bias, torch.zeros_like(q_bias), v_bias)).to(dtype)
