"""CLS and the visible patches with their positions."""

import torch

from bench.harness import MODES, Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops import embed_kept

__all__ = ["MODES", "subject"]


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    dim, n = shape.sizes.embed_dim, shape.sizes.num_patches
    kept = shape.visible()
    patches = shape.randn(shape.batch, kept.shape[1], dim).requires_grad_()
    cls_token = shape.randn(1, 1, dim, seed=1).requires_grad_()
    pos_embed = shape.randn(1, n + 1, dim, seed=2)
    rows = kept.long()

    def reference(x, cls):
        """MAE's, without the patches that it embeds and drops: positions gathered, added, CLS."""
        index = rows[:, :, None].expand(-1, -1, dim)
        x = x + pos_embed[:, 1:].expand(shape.batch, -1, -1).gather(1, index)
        return torch.cat(((cls + pos_embed[:, :1]).expand(shape.batch, -1, -1), x), dim=1)

    def tuned(x, cls):
        x = x + pos_embed[0].index_select(0, 1 + rows.flatten()).view_as(x)
        return torch.cat(((cls + pos_embed[:, :1]).expand(shape.batch, -1, -1), x), dim=1)

    def ours(x, cls):
        return embed_kept(x, kept, cls.view(-1), pos_embed[0])

    kit.add("reference", reference)
    kit.add("tuned", tuned)
    kit.add("eva_fast", ours)
    kit.add_compiled()
    return differentiable(
        "embed_kept",
        mode,
        shape.label,
        shape.device,
        kit.functions,
        [patches, cls_token],
        missing=kit.missing,
        batch=shape.batch,
        tolerance=1e-5 if shape.dtype == torch.float32 else 2e-2,
    )
