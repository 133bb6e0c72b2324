"""Residual addition and LayerNorm in 8 bits, against the norm and its quantisation in turn."""

import torch

from bench.harness import Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops import add_layer_norm_fp8

MODES = ("forward",)


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    """8-bit outputs are viewed as bytes: those of values in the middle of two may differ by one."""
    width = shape.sizes.embed_dim
    x, branch = (shape.randn(shape.rows, width, seed=i) for i in (0, 1))
    weight, bias, added = (shape.randn(width, dtype=torch.float32, seed=i) for i in (2, 3, 4))
    scale = torch.tensor(2.0**-4, device=shape.device)

    def tuned(x, branch, added, weight, bias, scale):
        total = (x.float() + (branch.float() + added)).to(x.dtype)
        y = torch.nn.functional.layer_norm(total.float(), weight.shape, weight, bias, 1e-6)
        q = (y / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        return total, q.view(torch.uint8)

    def ours(op):
        def run(x, branch, added, weight, bias, scale):
            total, q, _, _ = op(x, branch, added, None, weight, bias, 1e-6, scale)
            return total, q.view(torch.uint8)

        return run

    kit.add("reference", ours(add_layer_norm_fp8.reference))
    kit.add("tuned", tuned)
    kit.add("eva_fast", ours(add_layer_norm_fp8))
    kit.add_compiled()
    return differentiable(
        "add_layer_norm_fp8", mode, shape.label, shape.device, kit.functions,
        [x, branch, added, weight, bias, scale],
        missing=kit.missing, batch=shape.batch, tolerance=2e-2,
    )  # fmt: skip
