"""Mask tokens, CLS and positions."""

import torch

from bench.harness import MODES, Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops import embed_tokens

__all__ = ["MODES", "subject"]


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    dim, n = shape.sizes.embed_dim, shape.sizes.num_patches
    patches = shape.randn(shape.batch, n, dim).requires_grad_()
    mask_token = shape.randn(1, 1, dim, seed=1).requires_grad_()
    cls_token = shape.randn(1, 1, dim, seed=2).requires_grad_()
    pos_embed = shape.randn(1, n + 1, dim, seed=3).requires_grad_()
    indices, where = shape.mask(), shape.bool_mask()

    def reference(x, mask, cls, pos):
        w = where.unsqueeze(-1).type_as(mask)
        x = x * (1 - w) + mask.expand(shape.batch, n, -1) * w
        return torch.cat((cls.expand(shape.batch, -1, -1), x), dim=1) + pos

    def tuned(x, mask, cls, pos):
        x = torch.where(where.unsqueeze(-1), mask, x)
        return torch.cat((cls.expand(shape.batch, -1, -1), x), dim=1) + pos

    def ours(x, mask, cls, pos):
        return embed_tokens(x, indices, mask.view(-1), cls.view(-1), pos.view(n + 1, dim))

    kit.add("reference", reference)
    kit.add("tuned", tuned)
    kit.add("eva_fast", ours)
    kit.add_compiled()
    return differentiable(
        "embed_tokens",
        mode,
        shape.label,
        shape.device,
        kit.functions,
        [patches, mask_token, cls_token, pos_embed],
        missing=kit.missing,
        batch=shape.batch,
        tolerance=1e-5 if shape.dtype == torch.float32 else 2e-2,
    )
