"""A matrix as 8-bit floats and their scale, by rows and by columns."""

import torch

from bench.harness import Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops import quantise_fp8
from eva_fast.ops.quantise_fp8 import padded

MODES = ("forward",)
FORMAT = torch.float8_e4m3fn


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    """Outputs are viewed as bytes: every variant must give the same."""
    x = shape.randn(shape.rows, shape.sizes.embed_dim)
    largest = torch.finfo(FORMAT).max

    def tuned(x):
        """The scale by the exponent, one pass to 8 bits, one to the transpose."""
        scale = torch.exp2(torch.ceil(torch.log2(x.abs().amax().float() / largest)))
        q = (x.float() / scale).to(FORMAT)
        columns = torch.nn.functional.pad(q.view(torch.uint8).t(), (0, padded(len(x)) - len(x)))
        return q.view(torch.uint8), columns.contiguous(), scale

    def ours(quantise):
        def run(x):
            rows, columns, scale = quantise(x)
            return rows.view(torch.uint8), columns.view(torch.uint8), scale

        return run

    kit.add("reference", ours(quantise_fp8.reference))
    kit.add("tuned", tuned)
    kit.add("eva_fast", ours(quantise_fp8))
    kit.add_compiled()
    return differentiable(
        "quantise_fp8", mode, shape.label, shape.device, kit.functions, [x],
        missing=kit.missing, batch=shape.batch, tolerance=0.0,
    )  # fmt: skip
