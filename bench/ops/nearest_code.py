"""Codes of patches: product with a codebook of 8,192 and argmax, counts and sums of each code."""

import torch
import torch.nn.functional as F

from bench.harness import Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops import nearest_code

MODES = ("forward",)
CODES, WIDTH = 8192, 32


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    rows = shape.batch * shape.sizes.num_patches
    z = F.normalize(shape.randn(rows, WIDTH, dtype=torch.float32), dim=1)
    codebook = F.normalize(shape.randn(CODES, WIDTH, dtype=torch.float32, seed=1), dim=1)

    def reference(z, codebook):
        """As published: distances, and one-hot rows."""
        products = torch.einsum("bd,nd->bn", z, codebook)
        squares = z.pow(2).sum(1, keepdim=True) + codebook.pow(2).sum(1)
        index = (squares - 2 * products).argmin(1)
        one_hot = F.one_hot(index, CODES).to(z.dtype)
        return one_hot.sum(0), (z.t() @ one_hot).t()

    def tuned(z, codebook):
        index = (z @ codebook.t()).argmax(1)
        counts = z.new_zeros(CODES).index_add_(0, index, torch.ones_like(z[:, 0]))
        return counts, torch.zeros_like(codebook).index_add_(0, index, z)

    kit.add("reference", reference)
    kit.add("tuned", tuned)
    kit.add("eva_fast", lambda z, codebook: nearest_code(z, codebook, True)[1:])
    kit.add_compiled()
    return differentiable(
        "nearest_code", mode, shape.label, shape.device, kit.functions, [z, codebook],
        missing=kit.missing, batch=shape.batch, tolerance=1e-2,
    )  # fmt: skip
