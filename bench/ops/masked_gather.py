"""Rows of the masked patches of [B,T,D]."""

from bench.harness import MODES, Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops import masked_gather

__all__ = ["MODES", "subject"]


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    dim = shape.sizes.embed_dim
    x = shape.randn(shape.batch, shape.tokens, dim).requires_grad_()
    indices, where = shape.mask(), shape.bool_mask()
    image, patch = where.nonzero(as_tuple=True)
    rows = image * shape.tokens + patch + 1
    kit.add("reference", lambda x: x[:, 1:][where])
    kit.add("tuned", lambda x: x.flatten(0, 1).index_select(0, rows))
    kit.add("eva_fast", lambda x: masked_gather(x, indices))
    kit.missing["compile"] = "a boolean index breaks the graph"
    return differentiable(
        "masked_gather",
        mode,
        shape.label,
        shape.device,
        kit.functions,
        [x],
        missing=kit.missing,
        batch=shape.batch,
        tolerance=1e-6,
    )
