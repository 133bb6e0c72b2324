"""Attention whose output comes in 8 bits too, against attention and a quantising pass in turn."""

import torch
import torch.nn.functional as F

from bench.harness import Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops import packed_attention_fp8

MODES = ("forward",)


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    """8-bit outputs are viewed as bytes: those of values in the middle of two may differ by one."""
    heads = shape.sizes.num_heads
    width = shape.sizes.embed_dim // heads
    qkv = shape.randn(shape.batch, shape.tokens, 3, heads, width)
    scale = torch.tensor(2.0**-6, device=shape.device)

    def tuned(qkv, scale):
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()
        return out, (out.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)

    def ours(op):
        return lambda qkv, scale: op(qkv, width**-0.5, scale)[:2]

    def in_bytes(run):
        def bytes_of(qkv, scale):
            out, eight = run(qkv, scale)
            return out, eight.view(torch.uint8)

        return bytes_of

    kit.add("reference", in_bytes(ours(packed_attention_fp8.reference)))
    kit.add("tuned", in_bytes(tuned))
    kit.add("eva_fast", in_bytes(ours(packed_attention_fp8)))
    kit.add_compiled()
    return differentiable(
        "packed_attention_fp8", mode, shape.label, shape.device, kit.functions, [qkv, scale],
        missing=kit.missing, batch=shape.batch, tolerance=2e-2,
    )  # fmt: skip
