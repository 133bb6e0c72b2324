"""Self-attention as one branch with its own backward: norm, qkv, attention, projection.

    x' = x + scale (branch + bias);  y = LN(x');  qkv = y Wqkv^T + (q_bias, 0, v_bias)
    out = softmax(q k^T / sqrt d) v;  result: x', out Wproj^T  (bias pending)

A plain block keeps some twenty tensors for the backward pass. A branch keeps the residual stream,
the row statistics, qkv, the attention output (not in float32 on CPUs) and the log-sum-exp; the norm is
computed again, inside an op that reads its input anyway. The result is not added: it is returned
with the stream (`Stream`), and the next norm does the addition, the drop-path factor and the bias
in the same pass. Only q and v have biases whose gradients are summed: the softmax does not see what is
added to all keys, so that a k bias has none. Products run in the weights' dtype, or that of their
copies, whatever the stream's is; all heads together need not be as wide as the stream.

With an additive bias of the scores, [H, T, T], shared by all images, the op is `biased_attention`. With
rotary positions q and k are turned where the product wrote them (`rotary`), and dq and dk turned back.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from eva_fast.layers.add_norm import add_norm, add_norm_backward, rows_of
from eva_fast.layers.layer_scale import folded
from eva_fast.layers.linear import KeepsCopies, Linear, Matrix, can_keep, refreshed
from eva_fast.layers.masked_tail import MaskedAttentionBranch
from eva_fast.layers.members import child, parameter
from eva_fast.layers.products import (
    EightBitWeight,
    back,
    held,
    hold,
    in_columns,
    in_dtype,
    in_rows,
    known_scales,
    prepared,
    times,
    weight_gradient,
)
from eva_fast.layers.stream import Stream, leaving
from eva_fast.ops import copies
from eva_fast.ops.attention_parts import column_sums
from eva_fast.ops.biased_attention import biased_attention_backward, biased_attention_forward
from eva_fast.ops.checks import as_shaped, own_view
from eva_fast.ops.masked_gather import masked_gather_backward, masked_gather_forward
from eva_fast.ops.packed_attention import (
    packed_attention_backward,
    packed_attention_forward,
    recomputes_output,
)
from eva_fast.ops.packed_attention_fp8 import attention_backward_unchecked, attention_unchecked
from eva_fast.ops.rotary import Angles, turned

QkvBias = Literal["qv", "full"]


class AttentionWeights(NamedTuple):
    """Parameters of an attention branch."""

    norm_weight: Tensor
    norm_bias: Tensor
    qkv: Matrix
    q_bias: Tensor | None
    v_bias: Tensor | None
    packed_bias: Tensor | None
    """[3 H d] = (q_bias, k's or 0, v_bias) in the compute dtype, detached; None without biases."""
    proj: Matrix
    proj_bias: Tensor | None
    num_heads: int
    eps: float


def attention_forward(
    record, x, branch, branch_bias, scale, norm_weight, norm_bias, qkv_weight, q_bias, v_bias,
    proj_weight, qkv_copy, packed_bias, proj_copy, num_heads, eps, bias=None, mask=None, angles=None,
):  # fmt: skip
    """(x', the projection, the tensors that the backward reads); what else that reads is written to
    `record`, a function's context. With `mask`, only these rows are projected and come out: a bias that
    is shared by the batch has a row for every token, so that all ask."""
    qkv_used = qkv_weight if qkv_copy is None else qkv_copy
    proj_used = proj_weight if proj_copy is None else proj_copy
    y_scale, out_scale = known_scales(qkv_used, norm_weight, norm_bias, packed_bias)
    total, y, mean, rstd = add_norm(
        record, x, branch, branch_bias, scale, norm_weight, norm_bias, eps, y_scale
    )
    batch, tokens, dim = total.shape
    qkv, _ = times(y, qkv_used, packed_bias)
    packed = qkv.view(batch, tokens, 3, num_heads, -1)
    if angles is not None:
        packed = turned(packed, angles)
    attend_scale = packed.shape[-1] ** -0.5
    whole = bias is None and mask is None
    record.in_eight = whole and out_scale is not None and isinstance(proj_used, EightBitWeight)
    if record.in_eight:
        out, eight, lse = attention_unchecked(packed, attend_scale, out_scale)
        asking = in_rows(eight.flatten(2), out_scale)
    else:
        if bias is None:
            out, lse = packed_attention_forward(None, packed, attend_scale)
        else:
            out, lse = biased_attention_forward(None, packed, bias, None, attend_scale)
        asking = out if mask is None else masked_gather_forward(out.flatten(2), mask)
        asking = asking.view(batch, -1, packed.shape[-1] * num_heads)
    result, out_scale = times(asking, proj_used, None, out_scale)
    kept = None if recomputes_output(packed) else out
    saved = (
        total, mean, rstd, packed, kept, lse, scale, norm_weight, norm_bias, y_scale, out_scale,
        bias, mask, *hold(record, qkv_used, proj_used),
    )  # fmt: skip
    record.weight_dtypes, record.angles = (qkv_weight.dtype, proj_weight.dtype), angles
    record.bias_dtype = None if q_bias is None else q_bias.dtype
    if mask is not None:
        total = own_view(masked_gather_forward(total, mask), batch, -1, dim)
    return total, as_shaped(in_dtype(result, total.dtype), total), saved


def attention_backward(record, saved, wants, dtotal, dresult):
    """(gradients of x, branch, branch bias, scale, norm weight, norm bias, qkv weight, q bias, v bias,
    proj weight; of the scores' bias) from those of x' and the projection. wants: whether each of the
    last four of the first is wanted."""
    (
        total, mean, rstd, packed, out, lse, scale, norm_weight, norm_bias, y_scale, out_scale,
        bias, mask, *weights,
    ) = saved  # fmt: skip
    wqkv, wproj = held(record, *weights)
    batch, tokens, _, heads, head_dim = packed.shape
    width = heads * head_dim
    wants_qkv, wants_q_bias, wants_v_bias, wants_proj = wants
    dresult = prepared(dresult, wproj)
    dout = back(dresult, wproj, packed.dtype)
    if mask is not None:
        dout = masked_gather_backward(dout, mask, tokens)
        dtotal = masked_gather_backward(rows_of(dtotal), mask, tokens)
    dout = dout.view(batch, tokens, heads, head_dim)
    has_bias, dbias, turn = wants_q_bias or wants_v_bias, None, record.angles is not None
    largest = None
    if record.in_eight:
        dpacked, columns, bias_sums, largest = attention_backward_unchecked(
            dout, packed, out, lse, head_dim**-0.5, out_scale, has_bias and not turn
        )
    elif bias is None:
        _, dpacked, out, bias_sums = packed_attention_backward(
            dout, None, packed, out, lse, head_dim**-0.5, want_sums=has_bias and not turn
        )
    else:
        _, dpacked, out, bias_sums, dbias = biased_attention_backward(
            dout,
            None,
            packed,
            bias,
            None,
            out,
            lse,
            head_dim**-0.5,
            want_sums=has_bias and not turn,
        )
    if turn:
        dpacked, largest = turned(dpacked, record.angles, backward=True), None
        bias_sums = column_sums(None, dpacked, lse.dtype) if has_bias else None
    dqkv_weight = dproj = None
    if wants_proj:
        if record.in_eight:
            asking = in_columns(columns, out_scale)
        else:
            asking = out if mask is None else masked_gather_forward(out.flatten(2), mask)
            asking = asking.view(-1, width)
        dproj = weight_gradient(dresult, asking, record.weight_dtypes[1], out_scale)
    dqkv = prepared(dpacked.view(-1, 3 * width), wqkv, largest)
    dy = in_dtype(back(dqkv, wqkv, packed.dtype), total.dtype).view_as(total)
    pending, y = add_norm_backward(
        record, dy, dtotal, total, mean, rstd, norm_weight, norm_bias, scale, y_scale
    )
    if wants_qkv:
        rows = y if y_scale is not None else rows_of(y)
        dqkv_weight = weight_gradient(dqkv, rows, record.weight_dtypes[0], y_scale)
    biases = in_dtype(bias_sums, record.bias_dtype).unbind() if has_bias else (None, None)
    return (*pending, dqkv_weight, *biases, dproj), dbias


class _AttentionBranch(torch.autograd.Function):
    """Self-attention of all tokens, or of those in a mask."""

    @staticmethod
    def forward(ctx, *given):
        total, result, saved = attention_forward(ctx, *given)
        ctx.save_for_backward(*saved)
        return total, result

    @staticmethod
    def backward(ctx, dtotal, dresult):
        gradients, dbias = attention_backward(
            ctx, ctx.saved_tensors, ctx.needs_input_grad[6:10], dtotal, dresult
        )
        return *gradients, *[None] * 5, dbias, None, None


def attention_branch(
    stream: Stream,
    weights: AttentionWeights,
    tokens: Tensor | None = None,
    bias: Tensor | None = None,
    angles: Angles | None = None,
) -> Stream:
    """Adds what is pending in `stream` and runs norm, qkv, attention and projection.

    Returns (x', projection without bias, its bias). The caller sets the drop-path scale.
    tokens: int32 [B, K], rows of x; then only these ask and come out, with the values the full
    branch gives them: x' and branch are [B, K, D]. bias: [H, T, T], added to the scaled scores.
    angles: rotary positions; a bias of k, which has a gradient then, must be 0.
    """
    w = weights
    arguments = (
        *stream, w.norm_weight, w.norm_bias, w.qkv.weight, w.q_bias, w.v_bias, w.proj.weight,
        w.qkv.copy, w.packed_bias, w.proj.copy, w.num_heads, w.eps,
    )  # fmt: skip
    mask = None if tokens is None else tokens - 1  # the gather counts from the row after CLS
    if mask is None or bias is not None or angles is not None:
        x, branch = _AttentionBranch.apply(*arguments, bias, mask, angles)
    else:
        x, branch = MaskedAttentionBranch.apply(*arguments, mask)
    return Stream(x, branch, w.proj_bias)


class Attention(KeepsCopies, nn.Module):
    """Multi-head attention, with q and v biases and none for k as in BEiT and EVA (qkv_bias="qv"), or
    with the full bias `qkv.bias` of timm's and MAE's ViTs (qkv_bias="full").

    It takes the norm before it as an argument, whose parameters belong to the block, and so does it
    LayerScale's gamma [D]: `attn(stream, norm, tokens, bias, gamma) -> Stream`.
    """

    _kept: tuple[Tensor, list[Tensor]] | None = None
    """(q_bias, k_bias or 0, v_bias) in the compute dtype as one vector [3 D], and its parts that are
    copies of `_bias_parameters`."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: QkvBias = "qv"):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias == "full")
        if qkv_bias == "qv":
            self.q_bias = nn.Parameter(torch.zeros(dim))
            self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = Linear(dim, dim)

    def forward(
        self,
        stream: Stream,
        norm: nn.LayerNorm,
        tokens: Tensor | None = None,
        bias: Tensor | None = None,
        gamma: Tensor | None = None,
    ) -> Stream:
        """`attention_branch` with this module's parameters."""
        weights = self.weights(norm, gamma, stream.x.dtype)
        return leaving(self, attention_branch(stream, weights, tokens, bias))

    def weights(
        self, norm: nn.LayerNorm, gamma: Tensor | None, dtype: torch.dtype
    ) -> AttentionWeights:
        """What the branch reads in `dtype`."""
        qkv = child(self, "qkv")
        q_bias, v_bias, packed_bias = self._biases(dtype)
        proj, proj_bias = folded(child(self, "proj"), gamma, dtype)
        return AttentionWeights(
            norm_weight=parameter(norm, "weight"),
            norm_bias=parameter(norm, "bias"),
            qkv=qkv.operand(dtype),
            q_bias=q_bias,
            v_bias=v_bias,
            packed_bias=packed_bias,
            proj=proj,
            proj_bias=proj_bias,
            num_heads=self.num_heads,
            eps=norm.eps,
        )

    def keep_copies(self, dtype: torch.dtype) -> dict[Tensor, Tensor]:
        self.drop_copies()
        parameters = self._bias_parameters()
        if not all(can_keep(p) for p in parameters):
            return {}
        packed = self.qkv.weight.new_zeros(self.qkv.out_features, dtype=dtype)
        parts = [packed] if len(parameters) == 1 else [*packed.chunk(3)[::2]]
        for part, source in zip(parts, parameters, strict=True):
            copies.write(part, source)
        self._kept = packed, parts
        return dict(zip(parameters, parts, strict=True))

    def _bias_parameters(self) -> tuple[Tensor, ...]:
        whole = parameter(child(self, "qkv"), "bias")
        return (
            (whole,)
            if whole is not None
            else (parameter(self, "q_bias"), parameter(self, "v_bias"))
        )

    def _biases(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """(q's and v's, to which the gradients go; all as one vector [3 D] in `dtype`, detached)."""
        parameters = self._bias_parameters()
        if len(parameters) == 2:
            q_bias, v_bias = parameters
        else:
            q_bias, _, v_bias = parameters[0].chunk(3)
        if self._kept is not None:
            packed, parts = self._kept
            if packed.dtype == dtype and all(map(refreshed, parts, parameters)):
                return q_bias, v_bias, packed
        if len(parameters) == 2:
            zero = torch.zeros_like(q_bias.detach())
            packed = torch.cat((q_bias.detach(), zero, v_bias.detach()))
        else:
            packed = parameters[0].detach()
        return q_bias, v_bias, packed.to(dtype)
