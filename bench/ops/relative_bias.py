"""The bias [H,T,T] of attention from a table of relative positions, and the table's gradient."""

import torch

from bench.harness import MODES, Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops.relative_bias import relative_bias, sort_pairs

__all__ = ["MODES", "subject"]


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    side = int(shape.sizes.num_patches**0.5)
    y, x = (t.flatten() for t in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    index = (y[:, None] - y + side - 1) * (2 * side - 1) + x[:, None] - x + side - 1
    index = index.to(shape.device)
    rows = (2 * side - 1) ** 2
    table = shape.randn(rows, shape.sizes.num_heads, dtype=torch.float32).requires_grad_()
    pairs = sort_pairs(index, rows)

    def reference(table):
        return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1).contiguous()

    def tuned(table):
        return torch.nn.functional.embedding(index, table).permute(2, 0, 1).contiguous()

    kit.add("reference", reference)
    kit.add("tuned", tuned)
    kit.add("eva_fast", lambda table: relative_bias(table, index, *pairs))
    kit.add_compiled()
    return differentiable(
        "relative bias", mode, shape.label, shape.device, kit.functions, [table],
        missing=kit.missing,
    )  # fmt: skip
