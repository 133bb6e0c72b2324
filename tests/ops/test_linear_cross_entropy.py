import importlib

import pytest
import torch
import torch.nn.functional as F

from eva_fast import ops
from tests.ops.helpers import (
    check_against_float64,
    check_compiled,
    leaf,
    opcheck,
    rows_apart,
    with_dtypes,
)

module = importlib.import_module("eva_fast.ops.linear_cross_entropy")


def plain(x, weight, bias, target):
    logits = F.linear(x, weight, bias)
    return F.cross_entropy(logits.double() if x.dtype == torch.float64 else logits.float(), target)


def loss(*arguments):
    return ops.linear_cross_entropy(*arguments)[0]


def inputs(rows, width, codes, dtype=torch.float32):
    return (
        leaf(rows, width, dtype=dtype), leaf(codes, width, dtype=dtype, scale=width**-0.5),
        leaf(codes, dtype=dtype), torch.randint(codes, (rows,)),
    )  # fmt: skip


CASES = {"40 rows, 24 codes": (40, 16, 24), "19 rows, 203 codes": (19, 40, 203)}


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 6 rows and a rest, as on a CPU so on a GPU."""
    for name in ("CPU_CHUNK", "GPU_CHUNK"):
        monkeypatch.setattr(module, name, 6 * 203)


@pytest.mark.parametrize(("case", "dtype"), with_dtypes(CASES))
def test_against_float64(kernels, small_chunks, case, dtype):
    check_against_float64(loss, plain, lambda: inputs(*CASES[case], dtype), draws=8)


def test_large_logits_and_rows_apart(kernels, small_chunks):
    def make():
        x, weight, bias, target = inputs(13, 16, 203)
        return rows_apart((30 * x).detach().requires_grad_()), rows_apart(weight), bias, target

    check_against_float64(loss, plain, make, draws=2)


def test_statistics(kernels, small_chunks):
    x, weight, bias, target = inputs(13, 16, 203)
    _, statistics = ops.linear_cross_entropy(x, weight, bias, target)
    logits = F.linear(x, weight, bias).detach()
    target[:5] = logits[:5].argmax(1)
    _, again = ops.linear_cross_entropy(x.detach(), weight.detach(), bias.detach(), target)
    expected = torch.stack(
        (logits.logsumexp(1), logits.gather(1, target[:, None])[:, 0], logits.amax(1))
    )
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(statistics[0], again[0], rtol=0, atol=0)
    assert ((again[1] >= again[2]) == (logits.argmax(1) == target)).all()


def test_gradients_reach_the_parameter_behind_a_copy(kernels):
    x, weight, bias, target = inputs(13, 16, 24)
    x16 = x.detach().bfloat16().requires_grad_()
    copy = weight.detach().bfloat16()
    found = torch.autograd.grad(
        ops.linear_cross_entropy(x16, weight, bias, target, copy)[0], (x16, weight, bias)
    )
    wide = [t.detach().double().requires_grad_() for t in (x16, copy, bias)]
    exact = torch.autograd.grad(plain(*wide, target), wide)
    assert found[1].dtype == found[2].dtype == torch.float32
    for a, b in zip(found, exact, strict=True):
        assert (a.double() - b).norm() < 0.02 * b.norm()


def test_loss_scale_does_not_underflow_in_half_precision(kernels):
    x, weight, bias, target = inputs(40, 16, 203, torch.float16)
    (scaled,) = torch.autograd.grad(loss(x, weight, bias, target) * 4096, x)
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    (exact,) = torch.autograd.grad(plain(*wide, target) * 4096, wide[0])
    assert (scaled.double() - exact).norm() < 2e-3 * exact.norm()


def test_no_rows(kernels):
    x, weight, bias, target = inputs(0, 16, 24)
    found = loss(x, weight, bias, target)
    assert found.item() == 0
    dx, dweight, dbias = torch.autograd.grad(found, (x, weight, bias))
    assert dx.shape == (0, 16) and not dweight.any() and not dbias.any()


def test_opcheck(kernels):
    for gradients in (False, True):
        x, weight, bias, target = inputs(5, 16, 24)
        if not gradients:
            x, weight, bias = x.detach(), weight.detach(), bias.detach()
        arguments = (x, weight, bias, target, None, gradients)
        opcheck(torch.ops.eva_fast.linear_cross_entropy.default, arguments)


def test_compiled():
    check_compiled(loss, inputs(5, 16, 24))


def test_targets_out_of_range_are_refused_on_a_cpu(kernels):
    if kernels != "native":
        pytest.skip("PyTorch's own gather says so; a GPU does not read them on the host")
    x, weight, bias, target = inputs(5, 16, 24)
    target[2] = 24
    with pytest.raises(ValueError, match=r"targets must be in 0\.\.23, got \d+ to 24"):
        loss(x, weight, bias, target)


BAD = {
    "x has shape": lambda x, w, b, t: (x[0], w, b, t),
    "weight has shape": lambda x, w, b, t: (x, w[:, :-1], b, t),
    "bias has shape": lambda x, w, b, t: (x, w, b[:-1], t),
    "target has dtype": lambda x, w, b, t: (x, w, b, t.int()),
    "target has shape": lambda x, w, b, t: (x, w, b, t[:-1]),
    "weight_copy has dtype": lambda x, w, b, t: (x, w, b, t, w.detach().bfloat16()),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    with pytest.raises(ValueError, match=f"linear_cross_entropy: .*{message}"):
        ops.linear_cross_entropy(*BAD[message](*inputs(3, 16, 24)))
