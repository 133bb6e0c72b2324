"""Attention on packed qkv [B,T,3,H,d], and the libraries that compute it."""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.harness import MODES, Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops.packed_attention import packed_attention

__all__ = ["MODES", "subject"]


def _heads_first(qkv):
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def _sdpa(qkv, backend=None):
    q, k, v = _heads_first(qkv)
    if backend is None:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _xformers(module):
    def run(qkv):
        return module.memory_efficient_attention(*(t.contiguous() for t in qkv.unbind(2)))

    return run


def _flash_attn(module):
    return lambda qkv: module.flash_attn_qkvpacked_func(qkv)


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    heads = shape.sizes.num_heads
    width = shape.sizes.embed_dim // heads
    qkv = shape.randn(shape.batch, shape.tokens, 3, heads, width).requires_grad_()

    def reference(qkv):
        q, k, v = _heads_first(qkv)
        scores = (q * width**-0.5).float() @ k.float().transpose(-2, -1)
        return (scores.softmax(dim=-1).type_as(q) @ v).transpose(1, 2)

    kit.add("reference", reference)
    kit.add("tuned", _sdpa)
    kit.add("eva_fast", lambda qkv: packed_attention(None, qkv, width**-0.5)[0])
    if shape.device == "cuda":
        kit.add("sdpa cudnn", lambda x: _sdpa(x, SDPBackend.CUDNN_ATTENTION))
        kit.add("sdpa flash", lambda x: _sdpa(x, SDPBackend.FLASH_ATTENTION))
        kit.add("sdpa efficient", lambda x: _sdpa(x, SDPBackend.EFFICIENT_ATTENTION))
    kit.add("sdpa math", lambda x: _sdpa(x, SDPBackend.MATH))
    kit.add_compiled()
    kit.add_library("xformers", "xformers.ops", _xformers)
    kit.add_library("flash-attn", "flash_attn", _flash_attn)
    return differentiable(
        "attention",
        mode,
        shape.label,
        shape.device,
        kit.functions,
        [qkv],
        missing=kit.missing,
        batch=shape.batch,
        tolerance=1e-4 if shape.dtype == torch.float32 else 2e-2,
    )
