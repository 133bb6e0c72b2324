"""The student's head and loss: final norm, projection, negative cosine.

Two ways with the same numbers. "composed" keeps the normalised rows' residual and the predictions,
and its backward computes nothing again but the norm; "fused" is `masked_cosine_head`, which keeps
three scalars a row and predicts once more in the backward: less memory for one more product. A run
on a GPU measures both (`eva_fast.train.kernels`); else the composed one runs, unless
`kernels="triton"` asks for the fused one.
"""

from torch import Tensor

from eva_fast.model.branches import Matrix, Stream, projection_branch
from eva_fast.ops import dispatch
from eva_fast.ops.checks import statistics_dtype
from eva_fast.ops.masked_cosine_head import masked_cosine_head
from eva_fast.ops.negative_cosine import negative_cosine

OP = "masked_cosine_head"


def project(model, stream: Stream, copy: Tensor | None) -> Tensor:
    """Predictions [M, C] of the rows in `stream`, of which each is a masked patch.

    copy: the projection's weight in the compute dtype; None where the parameter has it.
    """
    norm, head = model.norm, model.lm_head
    matrix = Matrix(head.weight, copy)
    return projection_branch(stream, norm.weight, norm.bias, matrix, head.bias, norm.eps)


def composed_loss(model, stream: Stream, copy: Tensor | None, target: Tensor) -> Tensor:
    """-mean cos(prediction, target), the predictions in memory. target: [M, C]."""
    return negative_cosine(project(model, stream, copy), target)


def fused_loss(model, stream: Stream, copy: Tensor | None, target: Tensor) -> Tensor:
    """The same by one op, which rounds the weight itself."""
    norm, head = model.norm, model.lm_head
    rows = _added(stream).flatten(0, -2)
    return masked_cosine_head(
        rows, None, norm.weight, norm.bias, head.weight, head.bias, target, norm.eps
    )


def loss(model, stream: Stream, copy: Tensor | None, target: Tensor) -> Tensor:
    """The one that the run chose."""
    chosen = fused_loss if dispatch.forced(OP) == "triton" else composed_loss
    return chosen(model, stream, copy, target)


def _added(stream: Stream) -> Tensor:
    """x + scale (branch + bias), rounded once."""
    x, branch, bias, scale = stream
    if branch is None:
        return x
    compute = statistics_dtype(x)
    update = branch.to(compute)
    if bias is not None:
        update = update + bias.to(compute)
    if scale is not None:
        update = update * scale.to(compute)[:, None, None]
    return (x.to(compute) + update).to(x.dtype)
