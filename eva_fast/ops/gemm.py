"""Matrix product of the step: a library's GEMM, or on CPUs the project's own where it is built.

    matmul(a, b, bias) = a b + bias            a [M, K], b [K, N], bias [N]; either may be transposed

On a GPU the vendor's GEMM is the right tool and is called as it is. On a CPU in float32 the op runs
PyTorch's library or `csrc/ops/gemm.h`, which uses the whole of the cores of every vendor, hands out
its work piece by piece, and adds the bias while the tile is in registers. Which is faster depends on
the CPU's maker more than on the shape: a vendor's library favours its own. So the three products of
a small layer are timed once a machine, a fifth of a second, for as long as no run has measured its
own shapes.

An implementation gets a, b and bias or None and returns [M, N], contiguous.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from eva_fast.ops.choose import chosen
from eva_fast.ops.direct import direct
from eva_fast.ops.registry import Case, Runs, Trial, define

__all__ = ["gemm"]
_NAME = "gemm"
ROWS, WIDTH, HIDDEN = 514, 384, 1536  # of the trial: two images of a ViT-S


def _gemm(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """a [M, K] times b [K, N], plus bias [N] or None, as one operator; not differentiable."""
    return chosen(OP, a)(a, b, bias)


gemm = torch.library.custom_op("eva_fast::gemm", mutates_args=())(_gemm)


@gemm.register_fake
def _(a, b, bias):
    return a.new_empty((a.shape[0], b.shape[1]))


def plain_gemm(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b, plus bias, by PyTorch's library."""
    return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)


def matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [M, K] times b [K, N], plus bias [N]: [M, N], contiguous. Not differentiable on CPUs."""
    if a.is_cpu:
        return (_gemm if direct(a) else gemm)(a, b, bias)
    return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)


def _flops(a, b, *_, **__) -> int:
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


def _trial_runs(case: Case, names: Sequence[str]) -> Runs:
    """The forward product and both gradients."""
    x, g = torch.randn(ROWS, WIDTH, dtype=case.dtype), torch.randn(ROWS, HIDDEN, dtype=case.dtype)
    weight, bias = (
        torch.randn(HIDDEN, WIDTH, dtype=case.dtype),
        torch.randn(HIDDEN, dtype=case.dtype),
    )
    products = ((x, weight.t(), bias), (g, weight, None), (g.t(), x, None))

    def run(name: str) -> None:
        function = OP.function(name)
        for product in products:
            function(*product)

    return {name: functools.partial(run, name) for name in names}


OP = define(
    _NAME,
    part="gemm",
    reference=plain_gemm,
    plain=plain_gemm,
    flops=_flops,
    trial=Trial(
        device_type="cpu",
        label=lambda case: f"gemm {ROWS}x{WIDTH}x{HIDDEN}",
        runs=_trial_runs,
        once=True,
    ),
)
gemm.reference = plain_gemm  # type: ignore[attr-defined]
