"""Exact GELU of h + b in 8 bits, against GELU and its quantisation in turn."""

import torch
import torch.nn.functional as F

from bench.harness import Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops import bias_gelu_fp8

MODES = ("forward",)


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    """Outputs are viewed as bytes: those of values in the middle of two may differ by one."""
    h = shape.randn(shape.rows, shape.sizes.mlp_hidden)
    bias = shape.randn(shape.sizes.mlp_hidden, dtype=torch.float32, seed=1)
    scale = torch.tensor(2.0**-6, device=shape.device)

    def tuned(h, bias, scale):
        q = (F.gelu(h.float() + bias) / scale).clamp(-448, 448)
        return q.to(torch.float8_e4m3fn).view(torch.uint8)

    def ours(op):
        return lambda h, bias, scale: op(h, bias, "erf", scale).view(torch.uint8)

    kit.add("reference", ours(bias_gelu_fp8.reference))
    kit.add("tuned", tuned)
    kit.add("eva_fast", ours(bias_gelu_fp8))
    kit.add_compiled()
    return differentiable(
        "bias_gelu_fp8", mode, shape.label, shape.device, kit.functions, [h, bias, scale],
        missing=kit.missing, batch=shape.batch, tolerance=2e-2,
    )  # fmt: skip
