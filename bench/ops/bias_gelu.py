"""Exact GELU of h + b."""

import torch
import torch.nn.functional as F

from bench.harness import MODES, Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops import bias_gelu

__all__ = ["MODES", "subject"]


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    h = shape.randn(shape.rows, shape.sizes.mlp_hidden).requires_grad_()
    bias = shape.randn(shape.sizes.mlp_hidden, seed=1).requires_grad_()
    kit.add("reference", lambda h, b: F.gelu(h + b))
    kit.add("tuned", lambda h, b: F.gelu(h + b))
    kit.add("eva_fast", lambda h, b: bias_gelu(h, b))
    kit.add_compiled()
    return differentiable(
        "bias_gelu",
        mode,
        shape.label,
        shape.device,
        kit.functions,
        [h, bias],
        missing=kit.missing,
        batch=shape.batch,
        tolerance=1e-5 if shape.dtype == torch.float32 else 2e-2,
    )
