"""The norm of all gradients of a network, by which they are clipped."""

import torch

from bench.harness import Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.ops import gradient_norm

MODES = ("forward",)


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    """Those of a block's weights, float32 as masters have them."""
    width, hidden = shape.sizes.embed_dim, shape.sizes.mlp_hidden
    sizes = [(3 * width, width), (width, width), (hidden, width), (width, hidden)]
    sizes += [(n,) for n in (3 * width, width, hidden, width, width, width, width, width)]
    grads = [shape.randn(*size, seed=i).float() for i, size in enumerate(sizes)]

    def calling(function):
        return lambda *tensors: function(list(tensors))

    kit.add("reference", calling(gradient_norm.reference))
    kit.add("tuned", calling(lambda g: torch.nn.utils.get_total_norm(g, foreach=True)))
    kit.add("eva_fast", calling(gradient_norm))
    kit.add_compiled()
    return differentiable(
        "gradient_norm", mode, shape.label, shape.device, kit.functions, grads,
        missing=kit.missing, batch=shape.batch, tolerance=1e-5,
    )  # fmt: skip
