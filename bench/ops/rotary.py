"""Rotary positions on packed q, k and v, as EVA-02 (neighbours) turns them."""

import torch

from bench.harness import MODES, Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops import rotary

__all__ = ["MODES", "subject"]


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    sizes = shape.sizes
    heads, width = sizes.num_heads, sizes.embed_dim // sizes.num_heads
    places = sizes.num_patches
    packed = shape.randn(shape.batch, places + 1, 3, heads, width).requires_grad_()
    angles = shape.randn(places, width // 2, seed=1).float().repeat_interleave(2, 1)
    sin, cos = angles.sin(), angles.cos()

    def turned(x):
        partner = torch.stack((-x[..., 1::2], x[..., ::2]), -1).reshape(x.shape)
        return (x * cos + partner * sin).to(x.dtype)

    def reference(packed):
        """timm's: q and k apart, CLS in front."""
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = (torch.cat((x[:, :, :1], turned(x[:, :, 1:])), 2) for x in (q, k))
        return torch.stack((q, k, v), 2).permute(0, 3, 2, 1, 4)

    def tuned(packed):
        """Both at once, where they lie."""
        x = packed[:, 1:, :2]
        pairs = x.unflatten(-1, (-1, 2))
        a, b = pairs.unbind(-1)
        c, s = (t[:, None, None, ::2] for t in (cos, sin))
        new = torch.stack((a * c - b * s, b * c + a * s), -1).flatten(-2).to(x.dtype)
        return torch.cat((packed[:, :1], torch.cat((new, packed[:, 1:, 2:]), 2)), 1)

    kit.add("reference", reference)
    kit.add("tuned", tuned)
    kit.add("eva_fast", lambda packed: rotary(packed, sin, cos))
    kit.add_compiled()
    return differentiable(
        "rotary",
        mode,
        shape.label,
        shape.device,
        kit.functions,
        [packed],
        missing=kit.missing,
        batch=shape.batch,
        tolerance=1e-5 if shape.dtype == torch.float32 else 2e-2,
    )
