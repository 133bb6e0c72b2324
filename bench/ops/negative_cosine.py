"""The loss: -mean cos(prediction, target)."""

import torch
import torch.nn.functional as F

from bench.harness import MODES, Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops import negative_cosine

__all__ = ["MODES", "subject"]


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    size = (shape.batch * shape.masked, shape.sizes.predict_dim)
    prediction = shape.randn(*size).requires_grad_()
    target = shape.randn(*size, seed=1)

    def tuned(p, t):
        p, t = p.float(), t.float()
        unit = t / torch.linalg.vector_norm(t, dim=-1, keepdim=True)
        return -((p * unit).sum(-1) / torch.linalg.vector_norm(p, dim=-1)).mean()

    kit.add("reference", lambda p, t: -F.cosine_similarity(p.float(), t.float(), dim=-1).mean())
    kit.add("tuned", tuned)
    kit.add("eva_fast", negative_cosine)
    kit.add_compiled()
    return differentiable(
        "negative_cosine",
        mode,
        shape.label,
        shape.device,
        kit.functions,
        [prediction, target],
        missing=kit.missing,
        batch=shape.batch,
        tolerance=1e-4 if shape.dtype == torch.float32 else 2e-2,
    )
