"""From the rows of the visible patches to a decoder's tokens of all."""

import torch

from bench.harness import MODES, Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops import unshuffle_tokens

__all__ = ["MODES", "subject"]


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    dim, n = shape.sizes.embed_dim, shape.sizes.num_patches
    kept = shape.visible()
    count = kept.shape[1]
    rows = shape.randn(shape.batch, count + 1, dim).requires_grad_()
    mask_token = shape.randn(1, 1, dim, seed=1).requires_grad_()
    pos_embed = shape.randn(1, n + 1, dim, seed=2)
    flags = torch.ones(shape.batch, n, device=shape.device).scatter_(1, kept.long(), 0)
    order = torch.cat((kept.long(), flags.nonzero()[:, 1].view(shape.batch, n - count)), 1)
    restore = order.argsort(1)[:, :, None].expand(-1, -1, dim)
    index = kept.long()[:, :, None].expand(-1, -1, dim)

    def reference(x, mask):
        """MAE's: mask tokens appended, the list put back in order, CLS in front, positions added."""
        x_ = torch.cat((x[:, 1:], mask.expand(shape.batch, n - count, -1)), 1).gather(1, restore)
        return torch.cat((x[:, :1], x_), 1) + pos_embed

    def tuned(x, mask):
        x_ = mask.expand(shape.batch, n, -1).scatter(1, index, x[:, 1:])
        return torch.cat((x[:, :1], x_), 1) + pos_embed

    def ours(x, mask):
        return unshuffle_tokens(x, kept, mask.view(-1), pos_embed[0])

    kit.add("reference", reference)
    kit.add("tuned", tuned)
    kit.add("eva_fast", ours)
    kit.add_compiled()
    return differentiable(
        "unshuffle_tokens",
        mode,
        shape.label,
        shape.device,
        kit.functions,
        [rows, mask_token],
        missing=kit.missing,
        batch=shape.batch,
        tolerance=1e-5 if shape.dtype == torch.float32 else 2e-2,
    )
