"""Attention with a relative position bias [H,T,T] and its gradient, on packed qkv [B,T,3,H,d]."""

import torch
import torch.nn.functional as F

from bench.harness import MODES, Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops.biased_attention import biased_attention

__all__ = ["MODES", "subject"]


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    heads, tokens = shape.sizes.num_heads, shape.tokens
    width = shape.sizes.embed_dim // heads
    qkv = shape.randn(shape.batch, tokens, 3, heads, width).requires_grad_()
    bias = torch.randn(heads, tokens, tokens, device=shape.device, requires_grad=True)

    def reference(qkv, bias):
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * width**-0.5).float() @ k.float().transpose(-2, -1) + bias
        return (scores.softmax(dim=-1).type_as(q) @ v).transpose(1, 2)

    def sdpa(qkv, bias):
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mask = bias.to(q.dtype).expand(len(q), -1, -1, -1)
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)

    kit.add("reference", reference)
    kit.add("tuned", sdpa)
    kit.add("eva_fast", lambda qkv, bias: biased_attention(None, qkv, bias, width**-0.5)[0])
    kit.add_compiled()
    return differentiable(
        "biased attention",
        mode,
        shape.label,
        shape.device,
        kit.functions,
        [qkv, bias],
        missing=kit.missing,
        batch=shape.batch,
        tolerance=1e-4 if shape.dtype == torch.float32 else 2e-2,
    )
