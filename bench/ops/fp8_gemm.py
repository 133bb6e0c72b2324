"""The product of 8-bit matrices, beside the same product of 16-bit ones."""

import torch

from bench.harness import Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops import fp8_gemm, quantise_fp8
from eva_fast.ops.quantise_fp8 import padded

MODES = ("forward",)


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    """All variants multiply the values that 8 bits hold, so that they differ by rounding alone."""
    width, hidden = padded(shape.sizes.embed_dim), padded(shape.sizes.mlp_hidden)
    a, _, scale_a = quantise_fp8(shape.randn(shape.rows, width), want_columns=False)
    b, _, scale_b = quantise_fp8(shape.randn(hidden, width, seed=1), want_columns=False)
    x, weight = ((q.float() * s).to(shape.dtype) for q, s in ((a, scale_a), (b, scale_b)))

    kit.add("reference", lambda x, *_: torch.nn.functional.linear(x, weight))
    kit.add("tuned", lambda x, *_: x @ weight.t())
    kit.add("eva_fast", lambda _, a: fp8_gemm(a, b, scale_a, scale_b, dtype=shape.dtype))
    kit.add_compiled()
    return differentiable(
        "fp8_gemm", mode, shape.label, shape.device, kit.functions, [x, a],
        missing=kit.missing, batch=shape.batch,
        tolerance=1e-4 if shape.dtype == torch.float32 else 2e-2,
    )  # fmt: skip
