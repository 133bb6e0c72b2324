"""Attention over every library that is installed: one function, one choice.

    out = softmax(scale q k^T) v

`attention` takes packed projections, as the model has them, or q, k and v apart. The op underneath,
`eva_fast.ops.packed_attention`, returns the log-sum-exp too and has an explicit backward for the
branch functions. On meta and fake tensors it stays one operator, as on a GPU.
"""

import torch
from torch import Tensor

from eva_fast.ops.attention_backends import BACKENDS, Backend
from eva_fast.ops.attention_choice import (
    AttentionShape,
    backends,
    choose_backend,
    measure_backends,
    set_backend,
)
from eva_fast.ops.packed_attention import packed_attention

__all__ = [
    "BACKENDS",
    "AttentionShape",
    "Backend",
    "attention",
    "backends",
    "choose_backend",
    "measure_backends",
    "set_backend",
]


def attention(
    q: Tensor | None,
    kv: Tensor | tuple[Tensor, Tensor],
    scale: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(out [B, Tq, H, d], lse float32 [B, H, Tq]: log sum_j exp(scale q k_j), without gradient).

    attention(None, qkv): qkv packed [B, T, 3, H, d]. attention(q, kv): q [B, Tq, H, d], for example
    of the masked tokens only, and kv packed [B, T, 2, H, d]. attention(q, (k, v)): k, v [B, T, H, d],
    which are copied side by side. float32, bfloat16 or float16, last stride 1.
    scale: d^-0.5 unless given. backend: "auto" for the measured choice, or a key of `BACKENDS`;
    ValueError where that cannot run, or where a shape, dtype, device or stride does not fit.
    """
    if isinstance(kv, tuple):
        if q is None:
            raise ValueError("attention: q is None, but k and v are apart: pass q too")
        shapes = {tuple(t.shape) for t in kv}
        if len(kv) != 2 or len(shapes) != 1 or kv[0].dtype != kv[1].dtype:
            raise ValueError(
                "attention: k and v must be two tensors of one shape and dtype, got "
                + ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in kv)
            )
        kv = torch.stack(kv, 2)
    scale = kv.shape[-1] ** -0.5 if scale is None else scale
    return packed_attention(q, kv, scale, backend)
