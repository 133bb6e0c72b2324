"""The two halves of a block as functions with their own backward.

A plain block keeps some twenty tensors for the backward pass. These keep the residual stream, the
row statistics, qkv, the attention output, the log-sum-exp and the output of fc1; norms and GELU are
computed again, inside ops that read their inputs anyway. To make every residual addition part of
the next norm, a branch does not add its result: it returns a `Stream`, the residual so far and the
branch that is still to be added, and the next norm does the addition, the drop-path factor and the
branch's bias in the same pass.

    attention_branch:  x' = x + scale (branch + bias);  y = LN(x');  qkv = y Wqkv^T + b
                       out = softmax(q k^T / sqrt d) v;  result: x', out Wproj^T  (bias pending)
    mlp_branch:        x' likewise;  y = LN(x');  h = y W1^T;  g = gelu(h + b1)
                       result: x', g W2^T  (bias pending)

In the backward pass the norm's op gives dx, the column sums that are the pending bias's gradient,
and y once more for the weight gradient of the GEMM behind it; GELU's op gives dh, b1's gradient
and g. Only q and v have biases, so only their gradients are summed.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from eva_fast.ops.add_layer_norm import add_layer_norm_backward, add_layer_norm_forward
from eva_fast.ops.bias_gelu import bias_gelu_backward, bias_gelu_forward
from eva_fast.ops.linear import matmul, weight_gradient
from eva_fast.ops.masked_gather import masked_gather_backward, masked_gather_forward
from eva_fast.ops.packed_attention import (
    packed_attention_backward,
    packed_attention_forward,
    recomputes_output,
)


class Stream(NamedTuple):
    """A residual stream and a branch that is yet to be added: x + scale (branch + bias)."""

    x: Tensor
    """[B, T, D], the residual before the addition."""
    branch: Tensor | None = None
    """[B, T, D], or None: nothing to add."""
    bias: Tensor | None = None
    """[D], the bias of the branch's last GEMM."""
    scale: Tensor | None = None
    """float32 [B], drop-path's factor of each sample; None: 1."""


class Matrix(NamedTuple):
    """A weight [N, K] and what the GEMMs read: itself, or its copy in the compute dtype."""

    weight: Tensor
    copy: Tensor | None = None


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


@dataclass(frozen=True, slots=True)
class MlpWeights:
    """Parameters of an MLP branch."""

    norm_weight: Tensor
    norm_bias: Tensor
    fc1: Matrix
    fc1_bias: Tensor
    fc2: Matrix
    fc2_bias: Tensor
    eps: float
    kind: str = "erf"
    """The GELU: "erf" (exact) or "quick" (CLIP's)."""


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _norm(x, branch, branch_bias, scale, weight, bias, eps):
    """`add_layer_norm_forward`; x' is a view of x where nothing is added."""
    total, y, mean, rstd = add_layer_norm_forward(x, branch, branch_bias, scale, weight, bias, eps)
    return total.view_as(total), y, mean, rstd


def _norm_backward(ctx, dy, dtotal, total, mean, rstd, weight, bias, scale):
    """(gradients of x, branch, branch bias, scale, norm weight, norm bias), y for weights."""
    has_bias = ctx.branch_bias_dtype is not None
    dx, dbranch, y, dweight, dbias, dbranch_bias = add_layer_norm_backward(
        dy, dtotal, total, mean, rstd, weight, bias, scale, True, has_bias
    )
    pending = (
        dx,
        dbranch if ctx.has_branch else None,
        dbranch_bias.to(ctx.branch_bias_dtype) if has_bias else None,
        None,
    )
    return (*pending, dweight, dbias), y


def _remember(ctx, branch, branch_bias):
    ctx.has_branch = branch is not None
    ctx.branch_bias_dtype = None if branch_bias is None else branch_bias.dtype


class _AttentionBranch(torch.autograd.Function):
    """Self-attention of all tokens."""

    @staticmethod
    def forward(
        ctx, x, branch, branch_bias, scale, norm_weight, norm_bias, qkv_weight, q_bias, v_bias,
        proj_weight, qkv_copy, packed_bias, proj_copy, num_heads, eps,
    ):  # fmt: skip
        qkv_used = qkv_weight if qkv_copy is None else qkv_copy
        proj_used = proj_weight if proj_copy is None else proj_copy
        total, y, mean, rstd = _norm(x, branch, branch_bias, scale, norm_weight, norm_bias, eps)
        batch, tokens, dim = total.shape
        qkv = matmul(_flat(y), qkv_used.t(), packed_bias)
        packed = qkv.view(batch, tokens, 3, num_heads, dim // num_heads)
        out, lse = packed_attention_forward(None, packed, (dim // num_heads) ** -0.5)
        result = matmul(_flat(out.flatten(2)), proj_used.t())
        kept = None if recomputes_output(packed) else out
        ctx.save_for_backward(
            total, mean, rstd, packed, kept, lse, scale, norm_weight, norm_bias, qkv_used, proj_used
        )
        _remember(ctx, branch, branch_bias)
        ctx.weight_dtypes = qkv_weight.dtype, proj_weight.dtype
        ctx.bias_dtype = None if q_bias is None else q_bias.dtype
        return total, result.view(batch, tokens, -1)

    @staticmethod
    def backward(ctx, dtotal, dresult):
        total, mean, rstd, packed, out, lse, scale, norm_weight, norm_bias, wqkv, wproj = (
            ctx.saved_tensors
        )
        batch, tokens, _, heads, head_dim = packed.shape
        dim = heads * head_dim
        dresult = _flat(dresult)
        dout = matmul(dresult, wproj).view(batch, tokens, heads, head_dim)
        _, dpacked, out = packed_attention_backward(dout, None, packed, out, lse, head_dim**-0.5)
        dproj = weight_gradient(dresult, _flat(out.flatten(2)), ctx.weight_dtypes[1])
        dqkv = dpacked.view(-1, 3 * dim)
        dq_bias = dv_bias = None
        if ctx.bias_dtype is not None:
            dq_bias, dv_bias = dqkv.view(-1, 3, dim)[:, ::2].sum(0, dtype=ctx.bias_dtype)
        dy = matmul(dqkv, wqkv).view(total.shape)
        pending, y = _norm_backward(
            ctx, dy, dtotal, total, mean, rstd, norm_weight, norm_bias, scale
        )
        dwqkv = weight_gradient(dqkv, _flat(y), ctx.weight_dtypes[0])
        return *pending, dwqkv, dq_bias, dv_bias, dproj, None, None, None, None, None


class _MaskedAttentionBranch(torch.autograd.Function):
    """Attention whose queries are the masked tokens; keys and values are all tokens."""

    @staticmethod
    def forward(
        ctx, x, branch, branch_bias, scale, norm_weight, norm_bias, qkv_weight, q_bias, v_bias,
        proj_weight, qkv_copy, packed_bias, proj_copy, num_heads, eps, mask,
    ):  # fmt: skip
        qkv_used = qkv_weight if qkv_copy is None else qkv_copy
        proj_used = proj_weight if proj_copy is None else proj_copy
        total, y, mean, rstd = _norm(x, branch, branch_bias, scale, norm_weight, norm_bias, eps)
        batch, tokens, dim = total.shape
        head_dim = dim // num_heads
        bias_q, bias_kv = (None, None) if packed_bias is None else packed_bias.split((dim, 2 * dim))
        q = matmul(masked_gather_forward(y, mask), qkv_used[:dim].t(), bias_q)
        q = q.view(batch, -1, num_heads, head_dim)
        kv = matmul(_flat(y), qkv_used[dim:].t(), bias_kv)
        kv = kv.view(batch, tokens, 2, num_heads, head_dim)
        out, lse = packed_attention_forward(q, kv, head_dim**-0.5)
        result = matmul(_flat(out.flatten(2)), proj_used.t())
        kept = None if recomputes_output(kv) else out
        ctx.save_for_backward(
            total, mean, rstd, q, kv, kept, lse, scale, norm_weight, norm_bias, qkv_used, proj_used,
            mask,
        )  # fmt: skip
        _remember(ctx, branch, branch_bias)
        ctx.weight_dtypes = qkv_weight.dtype, proj_weight.dtype
        ctx.bias_dtype = None if q_bias is None else q_bias.dtype
        rows = masked_gather_forward(total, mask).view(batch, -1, dim)
        return rows, result.view(batch, -1, result.shape[-1])

    @staticmethod
    def backward(ctx, drows, dresult):
        total, mean, rstd, q, kv, out, lse, scale, norm_weight, norm_bias, wqkv, wproj, mask = (
            ctx.saved_tensors
        )
        tokens, dim = total.shape[1:]
        head_dim = q.shape[3]
        dresult = _flat(dresult)
        dout = matmul(dresult, wproj).view(q.shape)
        dq, dkv, out = packed_attention_backward(dout, q, kv, out, lse, head_dim**-0.5)
        dproj = weight_gradient(dresult, _flat(out.flatten(2)), ctx.weight_dtypes[1])
        dq, dkv = dq.view(-1, dim), dkv.view(-1, 2 * dim)
        dq_bias = dv_bias = None
        if ctx.bias_dtype is not None:
            dq_bias = dq.sum(0, dtype=ctx.bias_dtype)
            dv_bias = dkv[:, dim:].sum(0, dtype=ctx.bias_dtype)
        dy = matmul(dkv, wqkv[dim:]).view(total.shape)
        dy += masked_gather_backward(matmul(dq, wqkv[:dim]), mask, tokens)
        dtotal = masked_gather_backward(_flat(drows), mask, tokens)
        pending, y = _norm_backward(
            ctx, dy, dtotal, total, mean, rstd, norm_weight, norm_bias, scale
        )
        dtype = ctx.weight_dtypes[0]
        dwqkv = torch.cat(
            (
                weight_gradient(dq, masked_gather_forward(y, mask), dtype),
                weight_gradient(dkv, _flat(y), dtype),
            )
        )
        return *pending, dwqkv, dq_bias, dv_bias, dproj, None, None, None, None, None, None


class _MlpBranch(torch.autograd.Function):
    """Linear, GELU, Linear."""

    @staticmethod
    def forward(
        ctx, x, branch, branch_bias, scale, norm_weight, norm_bias, fc1_weight, fc1_bias,
        fc2_weight, fc1_copy, fc2_copy, eps, kind,
    ):  # fmt: skip
        fc1_used = fc1_weight if fc1_copy is None else fc1_copy
        fc2_used = fc2_weight if fc2_copy is None else fc2_copy
        total, y, mean, rstd = _norm(x, branch, branch_bias, scale, norm_weight, norm_bias, eps)
        h = matmul(_flat(y), fc1_used.t())
        result = matmul(bias_gelu_forward(h, fc1_bias, kind), fc2_used.t())
        ctx.save_for_backward(
            total, mean, rstd, h, fc1_bias, scale, norm_weight, norm_bias, fc1_used, fc2_used
        )
        _remember(ctx, branch, branch_bias)
        ctx.weight_dtypes = fc1_weight.dtype, fc2_weight.dtype
        ctx.kind = kind
        return total, result.view(*total.shape[:-1], -1)

    @staticmethod
    def backward(ctx, dtotal, dresult):
        total, mean, rstd, h, fc1_bias, scale, norm_weight, norm_bias, w1, w2 = ctx.saved_tensors
        dresult = _flat(dresult)
        dg = matmul(dresult, w2)
        dh, g, dfc1_bias = bias_gelu_backward(dg, h, fc1_bias, ctx.kind, want_g=True)
        dw2 = weight_gradient(dresult, g, ctx.weight_dtypes[1])
        dy = matmul(dh, w1).view(total.shape)
        pending, y = _norm_backward(
            ctx, dy, dtotal, total, mean, rstd, norm_weight, norm_bias, scale
        )
        dw1 = weight_gradient(dh, _flat(y), ctx.weight_dtypes[0])
        return *pending, dw1, dfc1_bias, dw2, None, None, None, None


class _ProjectionBranch(torch.autograd.Function):
    """The last residual addition, the final norm and the head's Linear."""

    @staticmethod
    def forward(
        ctx, x, branch, branch_bias, scale, norm_weight, norm_bias, weight, bias, copy, eps
    ):
        used = weight if copy is None else copy
        total, y, mean, rstd = _norm(x, branch, branch_bias, scale, norm_weight, norm_bias, eps)
        ctx.save_for_backward(total, mean, rstd, scale, norm_weight, norm_bias, used)
        _remember(ctx, branch, branch_bias)
        ctx.dtypes = weight.dtype, bias.dtype
        return matmul(_flat(y), used.t(), bias.to(used.dtype))

    @staticmethod
    def backward(ctx, dout):
        total, mean, rstd, scale, norm_weight, norm_bias, weight = ctx.saved_tensors
        dout = _flat(dout)
        dy = matmul(dout, weight).view(total.shape)
        pending, y = _norm_backward(ctx, dy, None, total, mean, rstd, norm_weight, norm_bias, scale)
        dweight = weight_gradient(dout, _flat(y), ctx.dtypes[0])
        return *pending, dweight, dout.sum(0, dtype=ctx.dtypes[1]), None, None


def attention_branch(
    stream: Stream, weights: AttentionWeights, mask: Tensor | None = None
) -> Stream:
    """Adds what is pending in `stream` and runs norm, qkv, attention and projection.

    Returns (x', projection without bias, its bias). The caller sets the drop-path scale.
    mask: int32 [B, K] patch indices; then only these tokens (rows 1 + mask) ask and come out, with
    the values the full branch gives them: x' and branch are [B, K, D].
    """
    w = weights
    arguments = (
        *stream, w.norm_weight, w.norm_bias, w.qkv.weight, w.q_bias, w.v_bias, w.proj.weight,
        w.qkv.copy, w.packed_bias, w.proj.copy, w.num_heads, w.eps,
    )  # fmt: skip
    if mask is None:
        x, branch = _AttentionBranch.apply(*arguments)
    else:
        x, branch = _MaskedAttentionBranch.apply(*arguments, mask)
    return Stream(x, branch, w.proj_bias)


def mlp_branch(stream: Stream, weights: MlpWeights) -> Stream:
    """Adds what is pending in `stream` and runs norm, fc1, GELU and fc2.

    Returns (x', fc2 without bias, its bias). The caller sets the drop-path scale.
    """
    w = weights
    x, branch = _MlpBranch.apply(
        *stream, w.norm_weight, w.norm_bias, w.fc1.weight, w.fc1_bias, w.fc2.weight, w.fc1.copy,
        w.fc2.copy, w.eps, w.kind,
    )  # fmt: skip
    return Stream(x, branch, w.fc2_bias)


def projection_branch(
    stream: Stream, norm_weight: Tensor, norm_bias: Tensor, head: Matrix, bias: Tensor, eps: float
) -> Tensor:
    """Adds what is pending in `stream`, normalises, projects: [rows, C]."""
    return _ProjectionBranch.apply(
        *stream, norm_weight, norm_bias, head.weight, bias, head.copy, eps
    )
