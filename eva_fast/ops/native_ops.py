"""The C++ kernels of csrc/ops as implementations of the ops (`native_calls` says how they are called).

Parameters reach the kernels as float32 vectors and their gradients come back so; activations keep
their dtype. Importing this module registers the `native` implementations; float64 never gets here.
"""

import ctypes
from ctypes import c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from eva_fast import native
from eva_fast.ops import dispatch
from eva_fast.ops.checks import nothing
from eva_fast.ops.gemm_choice import fastest_gemm
from eva_fast.ops.native_calls import (
    CODES,
    AdamTensor,
    at,
    empty,
    isa,
    kernel,
    row_stride,
    vector,
)
from eva_fast.ops.negative_cosine import EPS
from eva_fast.ops.packed_attention import backward_chosen, forward_chosen


def _add_layer_norm(x, branch, branch_bias, scale, weight, bias, eps):
    rows, width = x.shape
    total = empty(x, rows, width) if branch is not None else None
    y = empty(x, rows, width)
    mean, rstd = torch.empty(rows), torch.empty(rows)
    branch_bias, weight, bias = vector(branch_bias), vector(weight), vector(bias)
    scale = vector(scale)
    kernel("add_layer_norm")(
        CODES[x.dtype], rows, width, at(x), row_stride(x), at(branch), row_stride(branch),
        at(branch_bias), at(scale), rows // len(scale) if scale is not None else 1, at(weight),
        at(bias), eps, at(total), at(y), at(mean), at(rstd),
        torch.get_num_threads(),
    )  # fmt: skip
    return total if total is not None else nothing(x), y, mean, rstd


def _add_layer_norm_backward(
    dy, dresidual, total, mean, rstd, weight, bias, scale, want_y, want_branch_bias
):
    rows, width = dy.shape
    dx = empty(dy, rows, width)
    dbranch = empty(dy, rows, width) if scale is not None else None
    y = empty(dy, rows, width) if want_y else None
    sums = torch.empty(3 if want_branch_bias else 2, width)
    dtype = weight.dtype
    weight, bias, scale = vector(weight), vector(bias), vector(scale)
    kernel("add_layer_norm_backward")(
        CODES[dy.dtype], rows, width, at(dy), row_stride(dy), at(dresidual), row_stride(dresidual),
        at(total), row_stride(total), at(mean), at(rstd), at(weight), at(bias), at(scale),
        rows // len(scale) if scale is not None else 1, at(dx), at(dbranch), at(y), at(sums),
        int(want_branch_bias), torch.get_num_threads(),
    )  # fmt: skip
    dweight, dbias, *rest = (row.to(dtype, copy=True) for row in sums)
    return (
        dx,
        dbranch if dbranch is not None else nothing(dy),
        y if y is not None else nothing(dy),
        dweight,
        dbias,
        rest[0] if rest else nothing(dbias),
    )


def _bias_gelu(h, bias, kind):
    rows, width = h.shape
    out = empty(h, rows, width)
    bias = vector(bias)
    kernel("bias_gelu")(
        CODES[h.dtype], int(kind == "quick"), rows, width, at(h), row_stride(h), at(bias),
        at(out), torch.get_num_threads(),
    )  # fmt: skip
    return out


def _bias_gelu_backward(dg, h, bias, kind, want_g, want_bias):
    rows, width = h.shape
    dh = empty(h, rows, width)
    g = empty(h, rows, width) if want_g else None
    dbias = torch.empty(width) if want_bias else None
    dtype = h.dtype if bias is None else bias.dtype
    bias = vector(bias)
    kernel("bias_gelu_backward")(
        CODES[h.dtype], int(kind == "quick"), rows, width, at(dg), row_stride(dg), at(h),
        row_stride(h), at(bias), at(dh), at(g), at(dbias), torch.get_num_threads(),
    )  # fmt: skip
    return (
        dh,
        g if g is not None else nothing(h),
        dbias.to(dtype) if dbias is not None else torch.empty(0, dtype=dtype),
    )


def _check_indices(op: str, mask: Tensor | None, patches: int) -> None:
    """Memory outside a tensor is never touched: on the CPU reading the mask costs nothing."""
    if mask is None or not mask.numel():
        return
    low, high = (int(value) for value in mask.aminmax())
    if low < 0 or high >= patches:
        raise ValueError(f"{op}: mask indices must be in 0..{patches - 1}, got {low} to {high}")


def _embed_tokens(patches, mask, mask_token, cls_token, pos_embed, patch_bias):
    batch, count, width = patches.shape
    _check_indices("embed_tokens", mask, count)
    out = empty(patches, batch, count + 1, width)
    vectors = [vector(t) for t in (mask_token, cls_token, pos_embed, patch_bias)]
    kernel("embed_tokens")(
        CODES[patches.dtype], batch, count, width, at(patches), *patches.stride()[:2], at(mask),
        0 if mask is None else mask.shape[1], *map(at, vectors), at(out),
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def _embed_tokens_backward(dout, mask, parameter_dtype, want_bias):
    batch, tokens, width = dout.shape
    _check_indices("embed_tokens", mask, tokens - 1)
    dpatches = empty(dout, batch, tokens - 1, width)
    sums, dpos = torch.empty(2, width), torch.empty(tokens, width)
    kernel("embed_tokens_backward")(
        CODES[dout.dtype], batch, tokens - 1, width, at(dout), *dout.stride()[:2], at(mask),
        0 if mask is None else mask.shape[1], at(dpatches), at(sums), at(dpos),
        torch.get_num_threads(),
    )  # fmt: skip
    dmask_token, dbias = (row.to(parameter_dtype, copy=True) for row in sums)
    return (
        dpatches,
        dmask_token,
        dpos[0].to(parameter_dtype, copy=True),
        dpos.to(parameter_dtype),
        dbias if want_bias else nothing(dbias),
    )


def _masked_gather(x, mask):
    batch, count = mask.shape
    _check_indices("masked_gather", mask, x.shape[1] - 1)
    out = empty(x, batch * count, x.shape[2])
    size = x.element_size()
    kernel("masked_gather")(
        batch, count, size * x.shape[2], at(x), size * x.stride(0), size * x.stride(1),
        at(mask), at(out), torch.get_num_threads(),
    )  # fmt: skip
    return out


def _masked_gather_backward(dout, mask, tokens):
    batch, count = mask.shape
    _check_indices("masked_gather", mask, tokens - 1)
    dx = empty(dout, batch, tokens, dout.shape[1])
    size = dout.element_size()
    kernel("masked_gather_backward")(
        batch, tokens, count, size * dout.shape[1], at(dout), size * dout.stride(0), at(mask),
        at(dx), torch.get_num_threads(),
    )  # fmt: skip
    return dx


def _negative_cosine(p, t):
    rows, width = p.shape
    loss, statistics = torch.empty(()), torch.empty(3, rows)
    kernel("negative_cosine")(
        CODES[p.dtype], CODES[t.dtype], rows, width, at(p), row_stride(p), at(t), row_stride(t), EPS,
        at(loss), at(statistics), torch.get_num_threads(),
    )  # fmt: skip
    return loss, statistics


def _negative_cosine_backward(dloss, p, t, statistics):
    rows, width = p.shape
    dp = empty(p, rows, width)
    dloss = dloss.float()
    kernel("negative_cosine_backward")(
        CODES[p.dtype], CODES[t.dtype], rows, width, at(p), row_stride(p), at(t), row_stride(t),
        at(statistics), EPS, at(dloss), at(dp), torch.get_num_threads(),
    )  # fmt: skip
    return dp


def _patchify(images, patch_size, mean, std, dtype):
    batch, _, height, width = images.shape
    out = torch.empty(batch, height * width // patch_size**2, 3 * patch_size**2, dtype=dtype)
    # every byte of every channel once, by the same arithmetic as the reference
    shift, scale = (torch.tensor(v, dtype=torch.float32)[:, None] for v in (mean, std))
    table = ((torch.arange(256) / 255 - shift) / scale).contiguous()
    kernel("patchify")(
        CODES[dtype], batch, height, width, patch_size, at(images), at(table), at(out),
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def _adamw(
    params, copies, grads, exp_avgs, exp_avg_sqs, steps, weight_decays, lr, beta1, beta2, eps,
    grad_scale,
):  # fmt: skip
    table = (AdamTensor * len(params))()
    for i, p in enumerate(params):
        copy = copies[i] if copies else None
        table[i] = AdamTensor(
            p.numel(), at(p), at(exp_avgs[i]), at(exp_avg_sqs[i]), at(grads[i]), at(copy),
            at(steps[i]), CODES[grads[i].dtype], 0 if copy is None else CODES[copy.dtype],
            weight_decays[i],
        )  # fmt: skip
    lr, grad_scale = lr.float(), vector(grad_scale)
    kernel("adamw")(
        ctypes.byref(table), len(params), at(lr), beta1, beta2, eps, at(grad_scale),
        torch.get_num_threads(),
    )  # fmt: skip


class _Heads(ctypes.Structure):
    """[B, T, H, d] with a dense last dimension, as csrc/ops/attention.h has it."""

    _fields_ = (("data", c_void_p), ("batch", c_int64), ("token", c_int64), ("head", c_int64))


def _heads(tensor: Tensor | None):
    if tensor is None:
        return ctypes.byref(_Heads())
    return ctypes.byref(_Heads(tensor.data_ptr(), *tensor.stride()[:3]))


def _own_attention(q: Tensor, backend: str) -> bool:
    """Whether the C++ kernels take it: float32, vectors, no library asked for by name."""
    return q.dtype == torch.float32 and backend == "auto" and isa() != "baseline"


def _attention(q, k, v, scale, backend):
    if not _own_attention(q, backend):
        return forward_chosen(q, k, v, scale, backend)
    batch, queries, heads, width = q.shape
    out, lse = torch.empty(q.shape), torch.empty(batch, heads, queries)
    kernel("attention")(
        batch, heads, queries, k.shape[1], width, *map(_heads, (q, k, v, out)), at(lse), scale,
        torch.get_num_threads(),
    )  # fmt: skip
    return out, lse


def _attention_backward(dout, q, k, v, out, lse, scale, dq, dk, dv, again, backend):
    if not _own_attention(q, backend):
        backward_chosen(dout, q, k, v, out, lse, scale, dq, dk, dv, again, backend)
        return
    batch, queries, heads, width = q.shape
    again = again if out is None else None
    kernel("attention_backward")(
        batch, heads, queries, k.shape[1], width, *map(_heads, (dout, q, k, v)), at(lse),
        *map(_heads, (dq, dk, dv, again)), scale, torch.get_num_threads(),
    )  # fmt: skip


def _dense(tensor: Tensor) -> Tensor:
    """The matrix with one stride of 1, as the GEMM takes it."""
    rows, columns = tensor.shape
    if (tensor.stride(1) == 1 or columns == 1) or (tensor.stride(0) == 1 or rows == 1):
        return tensor
    return tensor.contiguous()


def _strides(tensor: Tensor) -> tuple[int, int]:
    """(row, column) strides with a 1 among them; those of a dimension of one are free."""
    row, column = tensor.stride()
    if row != 1 and column != 1:
        return (row, 1) if tensor.shape[1] == 1 else (1, column)
    return row, column


def _gemm(a, b, bias):
    if a.dtype != torch.float32 or isa() == "baseline":
        return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)
    a, b = _dense(a), _dense(b)
    rows, columns = a.shape[0], b.shape[1]
    out = empty(a, rows, columns)
    bias = vector(bias)
    kernel("gemm")(
        rows, columns, a.shape[1], at(a), *_strides(a), at(b), *_strides(b), at(out), columns,
        at(bias), 0, torch.get_num_threads(),
    )  # fmt: skip
    return out


if native.available():
    _FUNCTIONS: dict[str, Any] = {
        "add_layer_norm": _add_layer_norm,
        "add_layer_norm_backward": _add_layer_norm_backward,
        "adamw": _adamw,
        "packed_attention": _attention,
        "packed_attention_backward": _attention_backward,
        "bias_gelu": _bias_gelu,
        "bias_gelu_backward": _bias_gelu_backward,
        "embed_tokens": _embed_tokens,
        "embed_tokens_backward": _embed_tokens_backward,
        "gemm": _gemm,
        "masked_gather": _masked_gather,
        "masked_gather_backward": _masked_gather_backward,
        "negative_cosine": _negative_cosine,
        "negative_cosine_backward": _negative_cosine_backward,
        "patchify": _patchify,
    }
    for _name, _function in _FUNCTIONS.items():
        dispatch.register(_name, "native", _function)
    dispatch.register_measured("gemm", fastest_gemm)
