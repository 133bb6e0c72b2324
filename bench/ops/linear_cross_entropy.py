"""The head of masked image modelling with tokens: a Linear to 8,192 codes and the cross-entropy."""

import torch
import torch.nn.functional as F

from bench.harness import MODES, Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops import linear_cross_entropy

__all__ = ["MODES", "subject"]
CODES = 8192


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    rows, dim = shape.batch * shape.masked, shape.sizes.embed_dim
    x = shape.randn(rows, dim).requires_grad_()
    weight = (0.02 * shape.randn(CODES, dim, seed=1)).requires_grad_()
    bias = shape.randn(CODES, seed=2).requires_grad_()
    generator = torch.Generator().manual_seed(3)
    target = torch.randint(CODES, (rows,), generator=generator).to(shape.device)

    def reference(x, weight, bias):
        return F.cross_entropy(F.linear(x, weight, bias).float(), target)

    kit.add("reference", reference)
    kit.add("tuned", reference)
    kit.add("eva_fast", lambda x, weight, bias: linear_cross_entropy(x, weight, bias, target)[0])
    kit.add_compiled(reference)
    return differentiable(
        "linear_cross_entropy", mode, shape.label, shape.device, kit.functions, [x, weight, bias],
        missing=kit.missing, batch=shape.batch,
        tolerance=1e-4 if shape.dtype == torch.float32 else 2e-2,
    )  # fmt: skip
