"""A block's forward on the fused branches, tokens in and tokens out.

Under autocast the residual stream keeps the dtype the library gives it (float32 for most), as the
library's own block does, and products run in autocast's dtype. Drop-path's factors are drawn by the
block's own modules, from ones of its branch's dtype: the same random numbers, so that training with
one seed drops the same samples.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.modules.module as hooks
from torch import Tensor, nn

from eva_fast.acceleration.anatomy import (
    IDENTITY,
    TURNED_BIAS,
    Anatomy,
    AttentionPart,
    class_name,
    unlike_norm,
)
from eva_fast.layers.attention import AttentionWeights, attention_branch
from eva_fast.layers.layer_scale import scaled_matrix
from eva_fast.layers.linear import Matrix
from eva_fast.layers.mlp import MlpWeights, mlp_branch
from eva_fast.layers.precision import Precision, autocast_on
from eva_fast.layers.stream import Stream
from eva_fast.ops.add_layer_norm import add_layer_norm
from eva_fast.ops.checks import dense_last, statistics_dtype
from eva_fast.ops.rotary import Angles

FOLD_ROWS = 2
"""LayerScale is folded into a weight [N, K] where the branch has at least this many times N rows: below,
scaling the branch is the smaller work."""

Own = Callable[[Tensor], Tensor]
"""The library's own attention or MLP, from the norm's output to what LayerScale reads."""


def unfit(x: Any) -> bool:
    """Whether a call is one for the library's own forward: tokens that are no [B, T, D] of plain
    numbers, a call that is traced or transformed, hooks on all modules."""
    return (
        not isinstance(x, Tensor)
        or torch.jit.is_tracing()
        or x.dim() != 3
        or x.numel() == 0
        or not x.is_floating_point()
        or torch._C._are_functorch_transforms_active()
        or bool(
            hooks._global_forward_hooks
            or hooks._global_forward_pre_hooks
            or hooks._global_backward_hooks
            or hooks._global_backward_pre_hooks
        )
    )


def run(
    a: Anatomy,
    x: Tensor,
    attend: Own,
    feed: Own,
    bias: Tensor | None = None,
    angles: Angles | None = None,
) -> Tensor | None:
    """The block's output [B, T, D] of x, or None where dtypes are mixed as only the library knows.

    attend, feed: its own attention and MLP, for the part that is not fused. bias: [H, T, T], added to
    the fused attention's scores. angles: rotary positions.
    """
    if angles is not None and isinstance(a.attention, AttentionPart) and a.attention.keys_biased:
        a = a._replace(attention=TURNED_BIAS)
    compute = x.dtype
    if autocast_on(x.device.type):
        compute = torch.get_autocast_dtype(x.device.type)
    if not _dtypes_fit(a, x, compute):
        return None
    # adding gamma times a branch brings the stream into gamma's dtype, where that is the wider one
    for gamma in (a.gamma1, a.gamma2):
        x = x if gamma is None else x.to(torch.promote_types(x.dtype, gamma.dtype))
    stream = _attention(a, dense_last(x), compute, attend, bias, angles)
    return _mlp(a, stream, compute, feed)


def _dtypes_fit(a: Anatomy, x: Tensor, compute: torch.dtype) -> bool:
    """Whether weights have the stream's dtype, or one that autocast rounds to `compute`, and norms the
    stream's or float32."""
    stream = x.dtype
    parts = (p for p in (a.attention, a.mlp) if not isinstance(p, str))
    weights = [p.proj if isinstance(p, AttentionPart) else p.fc1 for p in parts]
    if autocast_on(x.device.type):
        fit = torch.float64 not in (stream, *(w.dtype for w in weights))
    else:
        fit = all(w.dtype == stream for w in weights)
    norms = (n.weight for n in (a.norm1, a.norm2) if getattr(n, "weight", None) is not None)
    return fit and all(n.dtype in (torch.float32, stream) for n in norms)


def _attention(
    a: Anatomy,
    x: Tensor,
    compute: torch.dtype,
    attend: Own,
    bias: Tensor | None,
    angles: Angles | None,
) -> Stream:
    """The stream after attention, which is yet to be added."""
    part = a.attention
    if isinstance(part, str) or part.dropping:
        return _pending(x, attend(a.norm1(x)), a.gamma1, a.drop1)
    with Precision(torch.float32).region(x.device.type):
        q_bias, v_bias, packed_bias = _biases(part.biases, compute)
        fold = _folds(x, a.gamma1, part.proj)
        proj, proj_bias = _last(part.proj, part.proj_bias, a.gamma1 if fold else None, compute)
        qkv = part.qkv[0] if len(part.qkv) == 1 else torch.cat(part.qkv)
        weights = AttentionWeights(
            norm_weight=a.norm1.weight,
            norm_bias=a.norm1.bias,
            qkv=_matrix(qkv, compute),
            q_bias=q_bias,
            v_bias=v_bias,
            packed_bias=packed_bias,
            proj=proj,
            proj_bias=proj_bias,
            num_heads=part.heads,
            eps=a.norm1.eps,
        )
        wide = statistics_dtype(x)
        if angles is not None:
            angles = angles._replace(sin=angles.sin.to(wide), cos=angles.cos.to(wide))
        stream = attention_branch(
            Stream(x), weights, bias=None if bias is None else bias.to(wide), angles=angles
        )
        scale = _factor(a.drop1, x, compute, a.gamma1)
        return _scaled(stream, None if fold else a.gamma1)._replace(scale=scale)


def _mlp(a: Anatomy, stream: Stream, compute: torch.dtype, feed: Own) -> Tensor:
    """The block's output from the stream after attention."""
    part, x = a.mlp, stream.x
    region = Precision(torch.float32).region(x.device.type)
    if isinstance(part, str) or part.dropping:
        if unlike_norm(a.norm2, "norm2", x.shape[-1]) is None:
            with region:
                x, y = add_layer_norm(*stream, a.norm2.weight, a.norm2.bias, a.norm2.eps)[:2]
        else:
            x = stream.added()
            y = a.norm2(x)
        h = feed(y)
        return x + a.drop2(h if a.gamma2 is None else h * a.gamma2)
    with region:
        fold = _folds(x, a.gamma2, part.fc2)
        fc2, fc2_bias = _last(part.fc2, part.fc2_bias, a.gamma2 if fold else None, compute)
        weights = MlpWeights(
            norm_weight=a.norm2.weight,
            norm_bias=a.norm2.bias,
            fc1=_matrix(part.fc1, compute),
            fc1_bias=part.fc1_bias,
            fc2=fc2,
            fc2_bias=fc2_bias,
            eps=a.norm2.eps,
            kind=part.kind,
        )
        stream = _scaled(mlp_branch(stream, weights), None if fold else a.gamma2)
        return stream._replace(scale=_factor(a.drop2, x, compute, a.gamma2)).added()


def _pending(x: Tensor, h: Tensor, gamma: Tensor | None, drop: nn.Module) -> Stream:
    """What the library's own attention gave, yet to be added."""
    h = h if gamma is None else h * gamma
    dtype = torch.promote_types(x.dtype, h.dtype)
    return Stream(x.to(dtype), dense_last(h.to(dtype)), None, _factor(drop, x, h.dtype, None))


def _matrix(weight: Tensor, compute: torch.dtype) -> Matrix:
    return Matrix(weight, None if weight.dtype == compute else weight.detach().to(compute))


def _biases(
    biases: tuple[Tensor | None, ...], compute: torch.dtype
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """q's and v's, to which the gradients go, and all in one, detached. A bias of k is a part of what
    q's and v's are cut from: its gradient is then zero, as it is, and not missing."""
    if len(biases) == 1:
        whole = biases[0]
        if whole is None:
            return None, None, None
    else:
        q_bias, k_bias, v_bias = biases
        assert q_bias is not None and v_bias is not None
        if k_bias is None:
            packed = torch.cat((q_bias, torch.zeros_like(q_bias), v_bias)).detach()
            return q_bias, v_bias, packed.to(compute)
        whole = torch.cat((q_bias, k_bias, v_bias))
    q_bias, _, v_bias = whole.chunk(3)
    return q_bias, v_bias, whole.detach().to(compute)


def _folds(x: Tensor, gamma: Tensor | None, weight: Tensor) -> bool:
    return gamma is not None and x.shape[0] * x.shape[1] >= FOLD_ROWS * weight.shape[1]


def _last(
    weight: Tensor, bias: Tensor | None, gamma: Tensor | None, compute: torch.dtype
) -> tuple[Matrix, Tensor | None]:
    """The last Linear of a branch, times gamma where that is given."""
    if gamma is None:
        return _matrix(weight, compute), bias
    return scaled_matrix(weight, gamma, compute), None if bias is None else gamma * bias


def _scaled(stream: Stream, gamma: Tensor | None) -> Stream:
    """The stream with gamma times what is pending in it; None: 1."""
    if gamma is None:
        return stream
    x, branch, bias, _ = stream
    assert branch is not None
    return Stream(x, (branch if bias is None else branch + bias) * gamma)


def _factor(
    drop: nn.Module, x: Tensor, compute: torch.dtype, gamma: Tensor | None
) -> Tensor | None:
    """Drop-path's factors [B], by the block's own module; None: 1."""
    if class_name(drop) == IDENTITY or not drop.training:
        return None
    dtype = compute if gamma is None else torch.promote_types(compute, gamma.dtype)
    ones = torch.ones((x.shape[0], 1, 1), dtype=dtype, device=x.device)
    return drop(ones).view(-1).to(statistics_dtype(x))
