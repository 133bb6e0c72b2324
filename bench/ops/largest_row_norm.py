"""The length of the longest row of an 8-bit matrix."""

import torch

from bench.harness import Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops import largest_row_norm, quantise_fp8

MODES = ("forward",)


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    """A gradient's."""
    q, _, scale = quantise_fp8(
        shape.randn(shape.rows, shape.sizes.embed_dim), want_columns=False
    )  # fmt: skip

    def tuned(q, scale):
        return torch.linalg.vector_norm(q.float(), dim=1).amax() * scale

    kit.add("reference", largest_row_norm.reference)
    kit.add("tuned", tuned)
    kit.add("eva_fast", largest_row_norm)
    kit.add_compiled()
    return differentiable(
        "largest_row_norm", mode, shape.label, shape.device, kit.functions, [q, scale],
        missing=kit.missing, batch=shape.batch, tolerance=1e-5,
    )  # fmt: skip
