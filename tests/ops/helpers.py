"""How an op's numbers are judged: against float64, by plain PyTorch's own error in that dtype."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from eva_fast import native
from eva_fast.ops import registry

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHORT = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def with_dtypes(cases: Sequence[str] | dict[str, Any], in_all: int = 2) -> list[Any]:
    """pytest parameters (case, dtype): the first `in_all` cases in every dtype, the rest in fp32."""
    return [
        pytest.param(case, dtype, id=f"{case}, {SHORT[dtype]}")
        for i, case in enumerate(cases)
        for dtype in (DTYPES if i < in_all else DTYPES[:1])
    ]


def leaf(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """A normal random tensor that requires grad."""
    return (torch.randn(shape, dtype=torch.float64) * scale).to(dtype).requires_grad_()


needs_native = pytest.mark.skipif(
    not native.available() or registry.interpreted(),
    reason="the C++ kernels are not built, or this process runs Triton's interpreter",
)


def rows_apart(tensor: Tensor) -> Tensor:
    """The same values with gaps between the rows (last stride still 1), still a leaf."""
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 3), float("nan"), dtype=tensor.dtype)
    view = wide[..., : tensor.shape[-1]]
    with torch.no_grad():
        view.copy_(tensor)
    return view.detach().requires_grad_(tensor.requires_grad)


def masks(batch: int, patches: int, count: int) -> Tensor:
    """int32 [batch, count], ascending indices below `patches`."""
    order = torch.rand(batch, patches).argsort(1)[:, :count]
    return order.sort(1).values.to(torch.int32)


def double(value: Any) -> Any:
    """A floating point tensor as a float64 leaf of its own; anything else as it is."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def outputs_and_gradients(
    function: Callable[..., Any], inputs: Sequence[Any], upstream: Sequence[Tensor]
) -> list[Tensor]:
    """The float outputs that `upstream` has a gradient for, then the gradient of each leaf."""
    result = function(*inputs)
    outputs = list(result if isinstance(result, tuple) else (result,))[: len(upstream)]
    leaves = [t for t in inputs if isinstance(t, Tensor) and t.requires_grad]
    upstream = [u.to(o.dtype) for u, o in zip(upstream, outputs, strict=True)]
    return [*outputs, *torch.autograd.grad(outputs, leaves, upstream)]


FEW = 256


class Accuracy:
    """Errors against float64, of an op and of plain PyTorch in the same dtype, by name.

    The largest error over all that was added must be at most twice plain PyTorch's; with few values
    (a loss, a short bias) the largest is a matter of luck, and the root mean square is compared.
    Where plain PyTorch happens to be exact, half a unit in the last place of the largest value is
    allowed: no result in the dtype can promise less.
    """

    def __init__(self):
        self.errors: dict[str, list[Tensor]] = {}

    def add(self, name: str, actual: Tensor, plain: Tensor, exact: Tensor) -> None:
        assert actual.shape == exact.shape and actual.dtype == plain.dtype, name
        if exact.numel() == 0:
            return
        assert not actual.isnan().any(), f"{name}: NaN"
        rounding = exact.detach().abs().max() * torch.finfo(actual.dtype).eps / 2
        new = [*((t.detach().double() - exact.detach()).abs().flatten() for t in (actual, plain))]
        new.append(rounding.flatten())
        old = self.errors.get(name)
        self.errors[name] = new if old is None else [torch.cat(v) for v in zip(old, new)]

    def check(self) -> None:
        for name, (actual, plain, rounding) in self.errors.items():
            few = actual.numel() < FEW
            error, usual = (e.square().mean().sqrt() if few else e.max() for e in (actual, plain))
            assert error <= max(2 * usual, rounding.max()), (
                f"{name}: {error:.3g}, plain {usual:.3g}"
            )


def check_against_float64(
    op: Callable[..., Any],
    plain: Callable[..., Any],
    make_inputs: Callable[[], Sequence[Any]],
    outputs: int = 1,
    draws: int = 3,
) -> None:
    """Outputs and gradients of `op` for random upstream gradients, judged by `Accuracy`.

    plain: the same maths in stock PyTorch; run in float64 it gives the exact values. draws: random
    inputs in the slow interpreter; eight times as many elsewhere, so that the ratio of two largest
    errors is less a matter of luck.
    """
    accuracy = Accuracy()
    for _ in range(draws if registry.interpreted() else 8 * draws):
        inputs = make_inputs()
        with torch.no_grad():
            shapes = plain(*inputs)
        shapes = (shapes if isinstance(shapes, tuple) else (shapes,))[:outputs]
        upstream = [torch.randn_like(s) for s in shapes]
        found = outputs_and_gradients(op, inputs, upstream)
        usual = outputs_and_gradients(plain, inputs, upstream)
        wide = [double(i) for i in inputs]
        exact = outputs_and_gradients(plain, wide, [u.double() for u in upstream])
        for i, (a, p, e) in enumerate(zip(found, usual, exact, strict=True)):
            name = f"output {i}" if i < outputs else f"gradient {i - outputs}"
            accuracy.add(name, a, p, e)
    accuracy.check()


def opcheck(op: Any, inputs: Sequence[Any]) -> None:
    """torch.library.opcheck; in the slow interpreter, the two tests that run the kernels plainly."""
    tests = ("test_schema", "test_faketensor")
    if registry.interpreted():
        torch.library.opcheck(op, inputs, test_utils=tests)
    else:
        torch.library.opcheck(op, inputs)


def check_compiled(op: Callable[..., Any], inputs: Sequence[Any], outputs: int = 1) -> None:
    """torch.compile(fullgraph=True) gives the same bits as eager, forward and backward."""
    eager = op(*inputs)
    eager = (eager if isinstance(eager, tuple) else (eager,))[:outputs]
    upstream = [torch.randn_like(o) for o in eager]
    torch._dynamo.reset()
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    expected = outputs_and_gradients(op, inputs, upstream)
    found = outputs_and_gradients(compiled, inputs, upstream)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
