"""The student's head and loss: final norm, projection, negative cosine.

Two ways with the same numbers. "composed" keeps the normalised rows' residual and the predictions,
and its backward computes nothing again but the norm; "fused" is `masked_cosine_head`, which keeps
three scalars a row and predicts once more in the backward: less memory for one more product. A run
on a GPU measures both (`eva_fast.train.kernels`); else the composed one runs, unless
`kernels="triton"` asks for the fused one.
"""

import torch
from torch import Tensor, nn

from eva_fast.layers import Projection, Stream
from eva_fast.ops import choose
from eva_fast.ops.masked_cosine_head import masked_cosine_head
from eva_fast.ops.negative_cosine import negative_cosine

OP = "masked_cosine_head"


class Head(Projection):
    """A projection that knows EVA's loss."""

    def loss(self, stream: Stream, norm: nn.LayerNorm, target: Tensor) -> Tensor:
        """-mean cos(prediction, target) of the rows in `stream`, target [rows, C]: the way that the
        run chose."""
        if target.dtype == torch.float64 and stream.x.dtype != torch.float64:
            target = target.float()
        fused = choose.demanded(OP) in ("triton", "fused", "composed")  # variants of the one op
        way = fused_loss if fused else composed_loss
        return way(self, stream, norm, target.detach())


def composed_loss(head: Projection, stream: Stream, norm: nn.LayerNorm, target: Tensor) -> Tensor:
    """-mean cos(prediction, target), the predictions in memory. target: [rows, C]."""
    return negative_cosine(head.project(stream, norm), target)


def fused_loss(head: Projection, stream: Stream, norm: nn.LayerNorm, target: Tensor) -> Tensor:
    """The same by one op, which rounds the weight itself."""
    rows = stream.added().flatten(0, -2)
    return masked_cosine_head(
        rows, None, norm.weight, norm.bias, head.weight, head.bias, target, norm.eps
    )
