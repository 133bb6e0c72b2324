"""The largest length of a row of an 8-bit matrix: what a product with it can come to.

    norm = scale max_m sqrt(sum_k q_mk^2)        |x . row_m| <= |x| norm        Cauchy-Schwarz

Kernels that write 8-bit tensors want the scale before they start: `branch_scales` and
`bias_gelu_fp8_backward` find it from such lengths. Those of a weight change as seldom as the weight.

An implementation gets q [M, K], contiguous, and the scale.
"""

import torch
from torch import Tensor

from eva_fast.ops.checks import check
from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import direct
from eva_fast.ops.fp8_gemm import FORMATS
from eva_fast.ops.registry import define

__all__ = ["largest_row_norm"]
_NAME = "largest_row_norm"


def reference(q: Tensor, scale: Tensor) -> Tensor:
    """`largest_row_norm` in plain PyTorch."""
    if q.shape[0] == 0:
        return scale * 0.0
    return q.float().square().sum(1).amax().sqrt() * scale


def _norm(q: Tensor, scale: Tensor) -> Tensor:
    return chosen(OP, q)(q, scale)


_norm_op = torch.library.custom_op(f"eva_fast::{_NAME}", mutates_args=())(_norm)


@_norm_op.register_fake
def _(q, scale):
    return torch.empty_like(scale)


def largest_row_norm(q: Tensor, scale: Tensor) -> Tensor:
    """float32 []: scale times the length of q's longest row; NaN where a value is.

    q: [M, K], float8_e4m3fn or float8_e5m2; scale: float32 []. Not differentiable. ValueError naming
    what does not fit.
    """
    check(_NAME, "q", q, shape=(None, None), dtypes=FORMATS)
    check(_NAME, "scale", scale, shape=(), dtypes=(torch.float32,), like=q)
    return row_norm_unchecked(q, scale)


def row_norm_unchecked(q: Tensor, scale: Tensor) -> Tensor:
    """`largest_row_norm` without the checks."""
    return (_norm if direct(q) else _norm_op)(q.contiguous(), scale)


OP = define(_NAME, part="quantise", reference=reference, plain=reference, kernels=2)
largest_row_norm.reference = reference  # type: ignore[attr-defined]
