"""The head: gather, final norm, projection and loss."""

import torch
import torch.nn.functional as F

from bench.harness import MODES, Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.baselines.official import EPS
from eva_fast.ops.masked_cosine_head import masked_cosine_head

__all__ = ["MODES", "subject"]


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    dim, out = shape.sizes.embed_dim, shape.sizes.predict_dim
    x = shape.randn(shape.batch, shape.tokens, dim).requires_grad_()
    ln_w = (1 + 0.1 * shape.randn(dim, seed=1)).requires_grad_()
    ln_b = (0.1 * shape.randn(dim, seed=2)).requires_grad_()
    weight = (0.05 * shape.randn(out, dim, seed=3)).requires_grad_()
    bias = shape.randn(out, seed=4).requires_grad_()
    target = shape.randn(shape.batch * shape.masked, out, seed=5)
    indices, where = shape.mask(), shape.bool_mask()
    image, patch = where.nonzero(as_tuple=True)
    rows = image * shape.tokens + patch + 1

    def loss(prediction):
        return -F.cosine_similarity(prediction.float(), target.float(), dim=-1).mean()

    def reference(x, ln_w, ln_b, weight, bias):
        y = F.layer_norm(x.float(), (dim,), ln_w.float(), ln_b.float(), EPS).type_as(x)
        return loss(F.linear(y[:, 1:][where], weight, bias))

    def tuned(x, ln_w, ln_b, weight, bias):
        y = F.layer_norm(x.flatten(0, 1).index_select(0, rows), (dim,), ln_w, ln_b, EPS)
        return loss(F.linear(y, weight, bias))

    def ours(x, ln_w, ln_b, weight, bias):
        return masked_cosine_head(x, indices, ln_w, ln_b, weight, bias, target, EPS)

    kit.add("reference", reference)
    kit.add("tuned", tuned)
    kit.add("eva_fast", ours)
    kit.add_compiled(tuned)
    return differentiable(
        "masked_cosine_head",
        mode,
        shape.label,
        shape.device,
        kit.functions,
        [x, ln_w, ln_b, weight, bias],
        missing=kit.missing,
        batch=shape.batch,
        tolerance=1e-4 if shape.dtype == torch.float32 else 2e-2,
    )
