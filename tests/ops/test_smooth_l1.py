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


def plain(p, t, beta=2.0):
    """The loss as Feature Distillation's code writes it, in float32 (in float64 for the exact value)."""
    compute = torch.float64 if p.dtype == torch.float64 else torch.float32
    target = F.layer_norm(t.to(compute), t.shape[-1:])
    return F.smooth_l1_loss(p.to(compute), target, beta=beta)


CASES = {
    "one row of 20": (1, 20),
    "7 rows of 768": (7, 768),
    "257 rows of 1023": (257, 1023),
}


@pytest.mark.parametrize(("case", "dtype"), with_dtypes(CASES))
def test_against_float64(kernels, case, dtype):
    """Errors on both sides of beta."""
    rows, width = CASES[case]

    def make():
        p = leaf(rows, width, dtype=dtype, scale=2.0)
        return p, (3 * torch.randn(rows, width) + 5).to(dtype)

    check_against_float64(ops.smooth_l1, plain, make, draws=1 if rows > 100 else 8)


def test_target_of_another_dtype_and_strided_rows(kernels):
    def make():
        return rows_apart(leaf(7, 60, dtype=torch.bfloat16)), rows_apart(torch.randn(7, 60))

    check_against_float64(ops.smooth_l1, plain, make)


def test_leading_dimensions_and_another_beta(kernels):
    def make():
        return leaf(2, 5, 21), torch.randn(2, 5, 21)

    check_against_float64(
        lambda p, t: ops.smooth_l1(p, t, 0.5), lambda p, t: plain(p, t, 0.5), make
    )


def test_a_large_mean_of_the_target_costs_no_digits(kernels):
    """The deviation comes from centred values."""
    p, t = leaf(4, 64), torch.randn(4, 64) + 1000
    exact = plain(p.double(), t.double())
    usual = abs(plain(p, t).double() - exact)
    assert abs(ops.smooth_l1(p, t).double() - exact) <= 2 * usual + 1e-7


def test_loss_scale_reaches_the_gradient_and_nan_stays(kernels):
    p, t = leaf(7, 60, dtype=torch.float16), torch.randn(7, 60)
    (scaled,) = torch.autograd.grad(ops.smooth_l1(p, t) * 1024, p)
    (expected,) = torch.autograd.grad(plain(p.float(), t) * 1024, p)
    torch.testing.assert_close(scaled, expected, rtol=2e-3, atol=1e-3)
    with torch.no_grad():
        p[3, 5] = torch.nan
    loss = ops.smooth_l1(p, t)
    assert loss.isnan() and torch.autograd.grad(loss, p)[0][3, 5].isnan()


def test_statistics(kernels):
    p, t = torch.randn(7, 60), torch.randn(7, 60)
    _, statistics = ops.smooth_l1_forward(p, t)
    deviation = (t.var(1, unbiased=False) + 1e-5).sqrt()
    losses = F.smooth_l1_loss(p, F.layer_norm(t, (60,)), beta=2.0, reduction="none").mean(1)
    torch.testing.assert_close(statistics, torch.stack((losses, t.mean(1), 1 / deviation)))


def test_no_rows(kernels):
    p = leaf(0, 20)
    loss = ops.smooth_l1(p, torch.empty(0, 20))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, p)[0].shape == (0, 20)


def test_reference_in_float64():
    p, t = torch.randn(7, 60).double(), torch.randn(7, 60).double()
    torch.testing.assert_close(ops.smooth_l1.reference(p, t), plain(p, t), rtol=0, atol=1e-14)


def test_opcheck(kernels):
    p, t = leaf(3, 20), torch.randn(3, 20)
    opcheck(torch.ops.eva_fast.smooth_l1.default, (p, t, 2.0))
    inputs = (torch.tensor(1.5), p.detach(), t, torch.rand(3, 3), 2.0)
    opcheck(torch.ops.eva_fast.smooth_l1_backward.default, inputs)


def test_compiled():
    check_compiled(ops.smooth_l1, (leaf(3, 20), torch.randn(3, 20)))


BAD = {
    "p has dtype": lambda p, t: (p.long(), t),
    "p has strides": lambda p, t: (p.t().contiguous().t(), t),
    "t has shape": lambda p, t: (p, t[:, :-1]),
    "t is on device": lambda p, t: (p, t.to("meta")),
    "t requires grad": lambda p, t: (p, t.requires_grad_()),
    "beta must be positive": lambda p, t: (p, t, 0.0),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    with pytest.raises(ValueError, match=f"smooth_l1: .*{message}"):
        ops.smooth_l1(*BAD[message](torch.randn(3, 20), torch.randn(3, 20)))
