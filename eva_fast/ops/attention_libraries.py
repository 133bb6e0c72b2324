"""The libraries that compute attention, behind one pair of calls.

    forward(q, k, v, scale) -> (out, lse)
    backward(dout, q, k, v, out, lse, scale, dq, dk, dv)       fills the last three

q, dout, out, dq are [B, Tq, H, d], k, v, dk, dv [B, T, H, d], last stride 1, usually views of packed
projections; out is contiguous; lse is the natural log-sum-exp, float32 [B, H, Tq], contiguous,
whatever the library's own layout. So the forward's out and lse are all that a backward needs, and
any library can follow any other, and our own kernels too.

    library          where                                  what
    flash_attn_3     sm_90, 16 bit, installed               flash-attn's Hopper kernels
    flash_attn_2     sm_80 and later, 16 bit, installed     flash-attn
    xformers         NVIDIA GPUs, 16 bit, installed         memory_efficient_attention
    cudnn            sm_80 and later, 16 bit                PyTorch's SDPA through cuDNN
    flash            sm_80 and later, 16 bit                PyTorch's copy of FlashAttention-2
    efficient        NVIDIA GPUs                            PyTorch's memory-efficient kernels
    cpu_flash        CPU                                    PyTorch's flash attention for CPUs
    math             everywhere, any dtype                  scores in memory, float32 softmax

PyTorch's kernels are called as aten operators, since scaled_dot_product_attention hides lse.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from eva_fast.ops.checks import statistics_dtype
from eva_fast.ops.registry import Case, Obstacle

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Library:
    """One library's pair of calls, and which cases (sizes: `AttentionShape`) it does not take."""

    name: str
    family: str
    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., None]
    limits: Obstacle
    last_resort: bool = False


def _heads_first(*tensors: Tensor) -> list[Tensor]:
    return [t.transpose(1, 2) for t in tensors]


def _rows_first(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    return out.transpose(1, 2).contiguous(), lse.contiguous()


def _fill(targets: tuple[Tensor, ...], gradients: Any) -> None:
    """Copies gradients [B, T, H, d] to their targets, by one kernel where those are side by side."""
    whole = targets[0]._base
    if (
        whole is not None
        and whole is targets[1]._base is targets[2]._base
        and whole.is_contiguous()
        and whole.shape[2] == 3
    ):
        torch.stack(gradients, 2, out=whole)
        return
    for target, gradient in zip(targets, gradients):
        target.copy_(gradient)


def _math_forward(q, k, v, scale):
    compute = statistics_dtype(q)
    q_, k_, v_ = _heads_first(q, k, v)
    scores = (q_.to(compute) * scale) @ k_.to(compute).transpose(-2, -1)
    out = scores.softmax(-1) @ v_.to(compute)
    return _rows_first(out.to(q.dtype), scores.logsumexp(-1))


def _math_backward(dout, q, k, v, out, lse, scale, dq, dk, dv):
    compute = statistics_dtype(q)
    do, q_, k_, v_ = (t.to(compute) for t in _heads_first(dout, q, k, v))
    # with P in memory, rows that sum to one and delta as P . dP round less than exp(scores - lse)
    # and dout . out do
    p = ((q_ * scale) @ k_.transpose(-2, -1)).softmax(-1)
    dp = do @ v_.transpose(-2, -1)
    ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * scale
    gradients = ds @ k_, ds.transpose(-2, -1) @ q_, p.transpose(-2, -1) @ do
    _fill((dq, dk, dv), _heads_first(*gradients))


def _cpu_forward(q, k, v, scale):
    flash = aten._scaled_dot_product_flash_attention_for_cpu
    return _rows_first(*flash(*_heads_first(q, k, v), scale=scale))


def _cpu_backward(dout, q, k, v, out, lse, scale, dq, dk, dv):
    flash = aten._scaled_dot_product_flash_attention_for_cpu_backward
    tensors = _heads_first(dout, q, k, v, out)
    _fill((dq, dk, dv), _heads_first(*flash(*tensors, lse, 0.0, False, scale=scale)))


# The kernels beneath `_scaled_dot_product_flash_attention`, which have tokens first as we do: of that
# operator's time on the host half goes into views.
_flash = aten._flash_attention_forward.default
_flash_gradients = aten._flash_attention_backward.default


def _flash_forward(q, k, v, scale):
    out, lse, *_ = _flash(
        q, k, v, None, None, q.shape[1], k.shape[1], 0.0, False, False, scale=scale
    )
    return out, lse


def _no_dropout(like: Tensor) -> tuple[Tensor, Tensor]:
    """Random state that a backward without dropout wants but never reads."""
    return like.new_empty(2, dtype=torch.int64), like.new_empty((), dtype=torch.int64)


@functools.cache
def _unread(device: torch.device) -> tuple[Tensor, Tensor]:
    """`_no_dropout`, once for all calls."""
    return _no_dropout(torch.empty(0, device=device))


def _flash_backward(dout, q, k, v, out, lse, scale, dq, dk, dv):
    gradients = _flash_gradients(
        dout, q, k, v, out, lse, None, None, q.shape[1], k.shape[1], 0.0, False,
        *_unread(q.device), scale=scale,
    )  # fmt: skip
    _fill((dq, dk, dv), gradients)


def _cudnn_forward(q, k, v, scale):
    out, lse, *_ = aten._scaled_dot_product_cudnn_attention(
        *_heads_first(q, k, v), None, True, 0.0, False, False, scale=scale
    )
    return _rows_first(out, lse.reshape(out.shape[:-1]))


def _cudnn_backward(dout, q, k, v, out, lse, scale, dq, dk, dv):
    tensors = _heads_first(dout, q, k, v, out)
    gradients = aten._scaled_dot_product_cudnn_attention_backward(
        *tensors, lse.unsqueeze(-1), *_no_dropout(q), None, None, None, q.shape[1], k.shape[1],
        0.0, False, scale=scale,
    )  # fmt: skip
    _fill((dq, dk, dv), _heads_first(*gradients))


def _efficient_forward(q, k, v, scale):
    out, lse, *_ = aten._scaled_dot_product_efficient_attention(
        *_heads_first(q, k, v), None, True, scale=scale
    )
    return _rows_first(out, lse[..., : q.shape[1]])


def _efficient_backward(dout, q, k, v, out, lse, scale, dq, dk, dv):
    lse = pad(lse, (0, -lse.shape[-1] % 32), value=float("inf"))  # its rows are padded to 32
    tensors = _heads_first(q, k, v)
    gradients = aten._scaled_dot_product_efficient_attention_backward(
        dout.transpose(1, 2), *tensors, None, out.transpose(1, 2), lse, *_no_dropout(q), 0.0,
        [True, True, True, False], scale=scale,
    )  # fmt: skip
    _fill((dq, dk, dv), _heads_first(*gradients[:3]))


def _flash_2_forward(q, k, v, scale):
    from flash_attn.flash_attn_interface import _flash_attn_forward

    out, lse, *_ = _flash_attn_forward(
        q, k, v, 0.0, scale, causal=False, window_size_left=-1, window_size_right=-1, softcap=0.0,
        alibi_slopes=None, return_softmax=False,
    )  # fmt: skip
    return out, lse


def _flash_2_backward(dout, q, k, v, out, lse, scale, dq, dk, dv):
    from flash_attn.flash_attn_interface import _flash_attn_backward

    _flash_attn_backward(
        dout, q, k, v, out, lse, dq, dk, dv, 0.0, scale, causal=False, window_size_left=-1,
        window_size_right=-1, softcap=0.0, alibi_slopes=None, deterministic=False,
    )  # fmt: skip


def _flash_3_forward(q, k, v, scale):
    from flash_attn_interface import _flash_attn_forward

    out, lse, *_ = _flash_attn_forward(q, k, v, softmax_scale=scale)
    return out, lse


def _flash_3_backward(dout, q, k, v, out, lse, scale, dq, dk, dv):
    from flash_attn_interface import _flash_attn_backward

    _flash_attn_backward(dout, q, k, v, out, lse, dq=dq, dk=dk, dv=dv, softmax_scale=scale)


def _xformers_forward(q, k, v, scale):
    from xformers.ops import memory_efficient_attention_forward_requires_grad as attend

    out, lse = attend(q, k, v, scale=scale)
    return out.contiguous(), lse[..., : q.shape[1]].contiguous()


def _xformers_backward(dout, q, k, v, out, lse, scale, dq, dk, dv):
    from xformers.ops import memory_efficient_attention_backward as attend

    lse = pad(lse, (0, -lse.shape[-1] % 32), value=float("inf"))
    for target, gradient in zip((dq, dk, dv), attend(dout, out, lse, q, k, v, scale=scale)):
        target.copy_(gradient)


def _limits(
    *,
    module: str | None = None,
    cuda: bool = True,
    dtypes: tuple[torch.dtype, ...] | None = HALF,
    capability: tuple[int, int] = (8, 0),
    exact: bool = False,
    head_dim: int = 256,
) -> Obstacle:
    def check(case: Case) -> str | None:
        if case.device.type != ("cuda" if cuda else "cpu"):
            return f"runs on {'NVIDIA GPUs' if cuda else 'CPUs'}"
        if module and importlib.util.find_spec(module) is None:
            return f"needs {module}, which is not installed"
        if dtypes and case.dtype not in dtypes:
            return f"takes {', '.join(str(d).removeprefix('torch.') for d in dtypes)}"
        if case.sizes and (case.sizes[-1] > head_dim or (dtypes == HALF and case.sizes[-1] % 8)):
            return f"takes heads of a multiple of 8 values up to {head_dim}"
        if cuda and torch.cuda.is_available():
            found = torch.cuda.get_device_capability(case.device)
            if found < capability or (exact and found[0] != capability[0]):
                return f"needs compute capability {capability[0]}.{capability[1]}"
        return None

    return check


FLOAT = (*HALF, torch.float32)
# In order of preference.
LIBRARIES = (
    Library(
        "flash_attn_3", "library", _flash_3_forward, _flash_3_backward,
        _limits(module="flash_attn_interface", capability=(9, 0), exact=True),
    ),
    Library("cudnn", "torch", _cudnn_forward, _cudnn_backward, _limits(head_dim=128)),
    Library(
        "flash_attn_2", "library", _flash_2_forward, _flash_2_backward,
        _limits(module="flash_attn"),
    ),
    Library("flash", "torch", _flash_forward, _flash_backward, _limits()),
    Library(
        "xformers", "library", _xformers_forward, _xformers_backward, _limits(module="xformers")
    ),
    Library(
        "efficient", "torch", _efficient_forward, _efficient_backward,
        _limits(dtypes=FLOAT, capability=(5, 0)),
    ),
    Library("cpu_flash", "torch", _cpu_forward, _cpu_backward, _limits(cuda=False, dtypes=None)),
    Library("math", "torch", _math_forward, _math_backward, lambda case: None, last_resort=True),
)  # fmt: skip
