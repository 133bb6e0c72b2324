"""The scales of a branch's 8-bit activations, from its parameters."""

import torch

from bench.harness import Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops import branch_scales
from eva_fast.ops.branch_scales import SLACK

MODES = ("forward",)


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    """An MLP's."""
    width, hidden = shape.sizes.embed_dim, shape.sizes.mlp_hidden
    weight, bias, linear_bias = (
        shape.randn(n, dtype=torch.float32, seed=i) for i, n in enumerate((width, width, hidden))
    )
    norm = torch.tensor(0.7, device=shape.device)

    def tuned(weight, bias, norm, linear_bias):
        """The scales by logarithms."""
        root, most = width**0.5, linear_bias.abs().amax()
        y = torch.add(bias.abs(), weight.abs(), alpha=root).amax()
        h = torch.addcmul(most, root * weight.abs().amax() + bias.norm(), norm, value=SLACK)
        return torch.exp2(torch.ceil(torch.log2(torch.stack((y, h)) / 448))).unbind()

    kit.add("reference", branch_scales.reference)
    kit.add("tuned", tuned)
    kit.add("eva_fast", branch_scales)
    kit.add_compiled()
    return differentiable(
        "branch_scales", mode, shape.label, shape.device, kit.functions,
        [weight, bias, norm, linear_bias],
        missing=kit.missing, batch=shape.batch, tolerance=0.0,
    )  # fmt: skip
