"""The start of every branch: the pending addition and the norm, forward and backward.

    x' = x + scale (branch + bias),  y = LN(x')

Only x' and the row statistics are kept. The backward gives dx, the column sums that are the pending
bias's gradient, and y once more for the weight gradient of the GEMM behind the norm.
"""

from torch import Tensor, nn

from eva_fast.layers.products import in_columns, in_dtype, in_rows
from eva_fast.layers.stream import Stream, as_stream
from eva_fast.ops.add_layer_norm import (
    add_layer_norm,
    add_layer_norm_backward,
    add_layer_norm_forward,
)
from eva_fast.ops.add_layer_norm_fp8 import (
    add_layer_norm_fp8_unchecked,
    norm_backward_unchecked,
)
from eva_fast.ops.largest import leave


class LayerNorm(nn.LayerNorm):
    """LayerNorm of a stream, the pending branch added in the same pass: Stream or [B, T, D] ->
    [B, T, D]. Statistics and parameters are float32 (EVA-01)."""

    def forward(self, stream: Stream | Tensor) -> Tensor:
        return add_layer_norm(*as_stream(stream), self.weight, self.bias, self.eps)[1]


def rows_of(x: Tensor) -> Tensor:
    """[..., D] as [M, D]."""
    return x.reshape(-1, x.shape[-1])


def add_norm(ctx, x, branch, bias, scale, norm_weight, norm_bias, eps, y_scale=None):
    """(x', y, mean, rstd) in a branch's forward; x' is a view of x where nothing is added, since a
    function cannot return its argument. With a scale y is 8 bits, by rows."""
    ctx.has_branch = branch is not None
    ctx.pending_bias_dtype = None if bias is None else bias.dtype
    given = x, branch, bias, scale, norm_weight, norm_bias, eps
    if y_scale is None:
        total, y, mean, rstd = add_layer_norm_forward(*given)
    else:
        total, y, mean, rstd = add_layer_norm_fp8_unchecked(*given, y_scale)
        y = in_rows(y, y_scale)
    return total if branch is not None else x.view_as(x), y, mean, rstd


def add_norm_backward(
    ctx, dy, dtotal, total, mean, rstd, norm_weight, norm_bias, scale, y_scale=None
):
    """((gradients of x, branch, bias, scale, norm weight, norm bias), y). With the scale that `add_norm`
    had y is 8 bits, by columns, and the branch's gradient is left with its largest magnitude."""
    has_bias = ctx.pending_bias_dtype is not None
    given = dy, dtotal, total, mean, rstd, norm_weight, norm_bias, scale
    if y_scale is None:
        dx, dbranch, y, dweight, dbias, dpending = add_layer_norm_backward(*given, True, has_bias)
    else:
        dx, dbranch, columns, dweight, dbias, dpending, largest = norm_backward_unchecked(
            *given, y_scale, has_bias
        )
        y = in_columns(columns, y_scale)
        leave(dbranch, largest)
    pending = (
        dx,
        dbranch if ctx.has_branch else None,
        in_dtype(dpending, ctx.pending_bias_dtype) if has_bias else None,
        None,
    )
    return (*pending, dweight, dbias), y
