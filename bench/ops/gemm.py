"""A Linear's products: PyTorch's library against what a CPU's choice is."""

import torch.nn.functional as F

from bench.harness import MODES, Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops.linear import linear

__all__ = ["MODES", "subject"]


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    width, hidden = shape.sizes.embed_dim, shape.sizes.mlp_hidden
    x = shape.randn(shape.rows, width).requires_grad_()
    weight = (shape.randn(hidden, width, seed=1) * width**-0.5).requires_grad_()
    bias = shape.randn(hidden, seed=2).requires_grad_()
    kit.add("reference", F.linear)
    kit.add("tuned", F.linear)
    kit.add("eva_fast", lambda x, weight, bias: linear(x, weight, bias))
    return differentiable(
        "gemm",
        mode,
        shape.label,
        shape.device,
        kit.functions,
        [x, weight, bias],
        missing=kit.missing,
        batch=shape.batch,
        tolerance=1e-4 if shape.dtype.itemsize == 4 else 2e-2,
    )
