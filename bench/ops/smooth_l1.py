"""Feature Distillation's loss: mean smooth L1 of the prediction and the whitened target."""

import torch
import torch.nn.functional as F

from bench.harness import MODES, Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops import smooth_l1

__all__ = ["MODES", "subject"]


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    size = (shape.batch * (shape.sizes.num_patches + 1), shape.sizes.predict_dim)
    prediction = shape.randn(*size).requires_grad_()
    target = shape.randn(*size, seed=1).float()

    def plain(p, t):
        return F.smooth_l1_loss(p.float(), F.layer_norm(t, t.shape[-1:]), beta=2.0)

    kit.add("reference", plain)
    kit.add("eva_fast", smooth_l1)
    kit.add_compiled()
    return differentiable(
        "smooth_l1",
        mode,
        shape.label,
        shape.device,
        kit.functions,
        [prediction, target],
        missing=kit.missing,
        batch=shape.batch,
        tolerance=1e-4 if shape.dtype == torch.float32 else 2e-2,
    )
