"""Final norm and projection of the masked rows."""

import torch
import torch.nn.functional as F

from bench.harness import MODES, Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.baselines.official import EPS
from eva_fast.ops.layer_norm_project import layer_norm_project

__all__ = ["MODES", "subject"]


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    dim, out = shape.sizes.embed_dim, shape.sizes.predict_dim
    x = shape.randn(shape.batch, shape.tokens, dim).requires_grad_()
    ln_w = (1 + 0.1 * shape.randn(dim, seed=1)).requires_grad_()
    ln_b = (0.1 * shape.randn(dim, seed=2)).requires_grad_()
    weight = (0.05 * shape.randn(out, dim, seed=3)).requires_grad_()
    bias = shape.randn(out, seed=4).requires_grad_()
    indices, where = shape.mask(), shape.bool_mask()
    image, patch = where.nonzero(as_tuple=True)
    rows = image * shape.tokens + patch + 1

    def reference(x, ln_w, ln_b, weight, bias):
        y = F.layer_norm(x.float(), (dim,), ln_w.float(), ln_b.float(), EPS).type_as(x)
        return F.linear(y[:, 1:][where], weight, bias)

    def tuned(x, ln_w, ln_b, weight, bias):
        y = F.layer_norm(x.flatten(0, 1).index_select(0, rows), (dim,), ln_w, ln_b, EPS)
        return F.linear(y, weight, bias)

    def ours(x, ln_w, ln_b, weight, bias):
        return layer_norm_project(x, indices, ln_w, ln_b, weight, bias, EPS)

    kit.add("reference", reference)
    kit.add("tuned", tuned)
    kit.add("eva_fast", ours)
    kit.add_compiled(tuned)
    return differentiable(
        "layer_norm_project",
        mode,
        shape.label,
        shape.device,
        kit.functions,
        [x, ln_w, ln_b, weight, bias],
        missing=kit.missing,
        batch=shape.batch,
        tolerance=1e-4 if shape.dtype == torch.float32 else 2e-2,
    )
