"""The C++ kernels of csrc/ops as implementations of the ops, through ctypes.

A kernel is a plain function of pointers, sizes and strides; it is compiled for several instruction
sets and looked up by name for the one in use. Parameters reach the kernels as float32 vectors and
their gradients come back so; activations keep their dtype. Importing this module registers the
`native` implementations; float64 never gets here.
"""

import ctypes
import functools
from ctypes import c_double, c_float, c_int, c_int32, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from eva_fast import native
from eva_fast.ops import dispatch
from eva_fast.ops.checks import nothing
from eva_fast.ops.gemm_choice import fastest_gemm
from eva_fast.ops.negative_cosine import EPS
from eva_fast.ops.packed_attention import backward_chosen, forward_chosen

ISA_NAMES = ("baseline", "avx2", "avx512")
_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_I, _L, _P, _F, _D = c_int, c_int64, c_void_p, c_float, c_double
_ARGUMENTS: dict[str, list[Any]] = {
    "add_layer_norm": [_I, _L, _L, _P, _L, _P, _L, _P, _P, _L, _P, _P, _F, *[_P] * 4, _I],
    "add_layer_norm_backward": [_I, _L, _L, *[_P, _L] * 3, *[_P] * 5, _L, *[_P] * 4, _I, _I],
    "adamw": [_P, _L, _P, _D, _D, _D, _P, _I],
    "sum_of_squares": [_P, _L, _P, _I],
    "attention": [_L] * 5 + [_P] * 5 + [_F, _I],
    "attention_backward": [_L] * 5 + [_P] * 9 + [_F, _I],
    "bias_gelu": [_I, _I, _L, _L, _P, _L, _P, _P, _I],
    "bias_gelu_backward": [_I, _I, _L, _L, _P, _L, _P, _L, *[_P] * 4, _I],
    "embed_tokens": [_I, _L, _L, _L, _P, _L, _L, _P, _L, *[_P] * 5, _I],
    "embed_tokens_backward": [_I, _L, _L, _L, _P, _L, _L, _P, _L, *[_P] * 3, _I],
    "gemm": [_L, _L, _L, *[_P, _L, _L] * 2, _P, _L, _P, _I, _I],
    "masked_gather": [_L, _L, _L, _P, _L, _L, _P, _P, _I],
    "masked_gather_backward": [_L, _L, _L, _L, _P, _L, _P, _P, _I],
    "negative_cosine": [_I, _I, _L, _L, _P, _L, _P, _L, _F, _P, _P, _I],
    "negative_cosine_backward": [_I, _I, _L, _L, _P, _L, _P, _L, _P, _F, _P, _P, _I],
    "patchify": [_I, _L, _L, _L, _L, _P, _P, _P, _I],
}


class _AdamTensor(ctypes.Structure):
    """One tensor of the optimiser's list, as csrc/ops/adamw.h has it."""

    _fields_ = (
        ("size", c_int64),
        ("param", c_void_p),
        ("exp_avg", c_void_p),
        ("exp_avg_sq", c_void_p),
        ("grad", c_void_p),
        ("copy", c_void_p),
        ("step", c_void_p),
        ("grad_type", c_int32),
        ("copy_type", c_int32),
        ("weight_decay", c_double),
    )


@functools.cache
def _kernel(name: str):
    library = native.library()
    assert library is not None  # registered only where the library is there
    library.eva_kernel.restype = c_void_p
    library.eva_kernel.argtypes = [ctypes.c_char_p]
    return ctypes.CFUNCTYPE(None, *_ARGUMENTS[name])(library.eva_kernel(name.encode()))


def set_isa(isa: str | None) -> str:
    """Chooses the instruction set of all kernels: "baseline", "avx2", "avx512" or None for the
    widest. Returns the one in use, which is never more than this CPU runs."""
    if isa is not None and isa not in ISA_NAMES:
        raise ValueError(f"unknown instruction set {isa!r}: choose from {ISA_NAMES}")
    library = native.library()
    if library is None:
        raise ValueError("the C++ kernels are not built: there is no instruction set to choose")
    _kernel.cache_clear()
    return ISA_NAMES[library.eva_set_isa(-1 if isa is None else ISA_NAMES.index(isa))]


def isa() -> str:
    """The instruction set in use."""
    library = native.library()
    return ISA_NAMES[library.eva_isa()] if library is not None else "none"


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _vector(tensor: Tensor | None) -> Tensor | None:
    """A parameter as dense float32."""
    return None if tensor is None else tensor.float().contiguous()


def _stride(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.stride(0)


def _empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype)


def _add_layer_norm(x, branch, branch_bias, scale, weight, bias, eps):
    rows, width = x.shape
    total = _empty(x, rows, width) if branch is not None else None
    y = _empty(x, rows, width)
    mean, rstd = torch.empty(rows), torch.empty(rows)
    branch_bias, weight, bias = _vector(branch_bias), _vector(weight), _vector(bias)
    scale = _vector(scale)
    _kernel("add_layer_norm")(
        _CODES[x.dtype], rows, width, _at(x), _stride(x), _at(branch), _stride(branch),
        _at(branch_bias), _at(scale), rows // len(scale) if scale is not None else 1, _at(weight),
        _at(bias), eps, _at(total), _at(y), _at(mean), _at(rstd),
        torch.get_num_threads(),
    )  # fmt: skip
    return total if total is not None else nothing(x), y, mean, rstd


def _add_layer_norm_backward(
    dy, dresidual, total, mean, rstd, weight, bias, scale, want_y, want_branch_bias
):
    rows, width = dy.shape
    dx = _empty(dy, rows, width)
    dbranch = _empty(dy, rows, width) if scale is not None else None
    y = _empty(dy, rows, width) if want_y else None
    sums = torch.empty(3 if want_branch_bias else 2, width)
    dtype = weight.dtype
    weight, bias, scale = _vector(weight), _vector(bias), _vector(scale)
    _kernel("add_layer_norm_backward")(
        _CODES[dy.dtype], rows, width, _at(dy), _stride(dy), _at(dresidual), _stride(dresidual),
        _at(total), _stride(total), _at(mean), _at(rstd), _at(weight), _at(bias), _at(scale),
        rows // len(scale) if scale is not None else 1, _at(dx), _at(dbranch), _at(y), _at(sums),
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
    out = _empty(h, rows, width)
    bias = _vector(bias)
    _kernel("bias_gelu")(
        _CODES[h.dtype], int(kind == "quick"), rows, width, _at(h), _stride(h), _at(bias),
        _at(out), torch.get_num_threads(),
    )  # fmt: skip
    return out


def _bias_gelu_backward(dg, h, bias, kind, want_g, want_bias):
    rows, width = h.shape
    dh = _empty(h, rows, width)
    g = _empty(h, rows, width) if want_g else None
    dbias = torch.empty(width) if want_bias else None
    dtype = h.dtype if bias is None else bias.dtype
    bias = _vector(bias)
    _kernel("bias_gelu_backward")(
        _CODES[h.dtype], int(kind == "quick"), rows, width, _at(dg), _stride(dg), _at(h),
        _stride(h), _at(bias), _at(dh), _at(g), _at(dbias), torch.get_num_threads(),
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
    out = _empty(patches, batch, count + 1, width)
    vectors = [_vector(t) for t in (mask_token, cls_token, pos_embed, patch_bias)]
    _kernel("embed_tokens")(
        _CODES[patches.dtype], batch, count, width, _at(patches), *patches.stride()[:2], _at(mask),
        0 if mask is None else mask.shape[1], *map(_at, vectors), _at(out),
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def _embed_tokens_backward(dout, mask, parameter_dtype, want_bias):
    batch, tokens, width = dout.shape
    _check_indices("embed_tokens", mask, tokens - 1)
    dpatches = _empty(dout, batch, tokens - 1, width)
    sums, dpos = torch.empty(2, width), torch.empty(tokens, width)
    _kernel("embed_tokens_backward")(
        _CODES[dout.dtype], batch, tokens - 1, width, _at(dout), *dout.stride()[:2], _at(mask),
        0 if mask is None else mask.shape[1], _at(dpatches), _at(sums), _at(dpos),
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
    out = _empty(x, batch * count, x.shape[2])
    size = x.element_size()
    _kernel("masked_gather")(
        batch, count, size * x.shape[2], _at(x), size * x.stride(0), size * x.stride(1),
        _at(mask), _at(out), torch.get_num_threads(),
    )  # fmt: skip
    return out


def _masked_gather_backward(dout, mask, tokens):
    batch, count = mask.shape
    _check_indices("masked_gather", mask, tokens - 1)
    dx = _empty(dout, batch, tokens, dout.shape[1])
    size = dout.element_size()
    _kernel("masked_gather_backward")(
        batch, tokens, count, size * dout.shape[1], _at(dout), size * dout.stride(0), _at(mask),
        _at(dx), torch.get_num_threads(),
    )  # fmt: skip
    return dx


def _negative_cosine(p, t):
    rows, width = p.shape
    loss, statistics = torch.empty(()), torch.empty(3, rows)
    _kernel("negative_cosine")(
        _CODES[p.dtype], _CODES[t.dtype], rows, width, _at(p), _stride(p), _at(t), _stride(t), EPS,
        _at(loss), _at(statistics), torch.get_num_threads(),
    )  # fmt: skip
    return loss, statistics


def _negative_cosine_backward(dloss, p, t, statistics):
    rows, width = p.shape
    dp = _empty(p, rows, width)
    dloss = dloss.float()
    _kernel("negative_cosine_backward")(
        _CODES[p.dtype], _CODES[t.dtype], rows, width, _at(p), _stride(p), _at(t), _stride(t),
        _at(statistics), EPS, _at(dloss), _at(dp), torch.get_num_threads(),
    )  # fmt: skip
    return dp


def _patchify(images, patch_size, mean, std, dtype):
    batch, _, height, width = images.shape
    out = torch.empty(batch, height * width // patch_size**2, 3 * patch_size**2, dtype=dtype)
    # every byte of every channel once, by the same arithmetic as the reference
    shift, scale = (torch.tensor(v, dtype=torch.float32)[:, None] for v in (mean, std))
    table = ((torch.arange(256) / 255 - shift) / scale).contiguous()
    _kernel("patchify")(
        _CODES[dtype], batch, height, width, patch_size, _at(images), _at(table), _at(out),
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def _adamw(
    params, copies, grads, exp_avgs, exp_avg_sqs, steps, weight_decays, lr, beta1, beta2, eps,
    grad_scale,
):  # fmt: skip
    table = (_AdamTensor * len(params))()
    for i, p in enumerate(params):
        copy = copies[i] if copies else None
        table[i] = _AdamTensor(
            p.numel(), _at(p), _at(exp_avgs[i]), _at(exp_avg_sqs[i]), _at(grads[i]), _at(copy),
            _at(steps[i]), _CODES[grads[i].dtype], 0 if copy is None else _CODES[copy.dtype],
            weight_decays[i],
        )  # fmt: skip
    lr, grad_scale = lr.float(), _vector(grad_scale)
    _kernel("adamw")(
        ctypes.byref(table), len(params), _at(lr), beta1, beta2, eps, _at(grad_scale),
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
    _kernel("attention")(
        batch, heads, queries, k.shape[1], width, *map(_heads, (q, k, v, out)), _at(lse), scale,
        torch.get_num_threads(),
    )  # fmt: skip
    return out, lse


def _attention_backward(dout, q, k, v, out, lse, scale, dq, dk, dv, again, backend):
    if not _own_attention(q, backend):
        backward_chosen(dout, q, k, v, out, lse, scale, dq, dk, dv, again, backend)
        return
    batch, queries, heads, width = q.shape
    again = again if out is None else None
    _kernel("attention_backward")(
        batch, heads, queries, k.shape[1], width, *map(_heads, (dout, q, k, v)), _at(lse),
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
    out = _empty(a, rows, columns)
    bias = _vector(bias)
    _kernel("gemm")(
        rows, columns, a.shape[1], _at(a), *_strides(a), _at(b), *_strides(b), _at(out), columns,
        _at(bias), 0, torch.get_num_threads(),
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
