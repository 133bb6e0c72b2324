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


def plain(p, t):
    """The loss as EVA writes it: both sides in float32 (in float64 for the exact value)."""
    compute = torch.float64 if p.dtype == torch.float64 else torch.float32
    return -F.cosine_similarity(p.to(compute), t.to(compute), dim=-1).mean()


CASES = {
    "one row of 20": (1, 20),
    "7 rows of 768": (7, 768),
    "257 rows of 1024": (257, 1024),
}


@pytest.mark.parametrize(("case", "dtype"), with_dtypes(CASES))
def test_against_float64(kernels, case, dtype):
    rows, width = CASES[case]

    def make():
        p = leaf(rows, width, dtype=dtype)
        return p, (0.5 * p + leaf(rows, width, dtype=dtype)).detach()

    check_against_float64(ops.negative_cosine, plain, make, draws=1 if rows > 100 else 8)


def test_target_of_another_dtype_and_strided_rows(kernels):
    def make():
        return rows_apart(leaf(7, 60)), rows_apart(leaf(7, 60, dtype=torch.bfloat16).detach())

    check_against_float64(ops.negative_cosine, plain, make)


def test_a_row_of_zeros_counts_as_zero_and_stays_finite(kernels):
    p, t = leaf(4, 20), torch.randn(4, 20)
    with torch.no_grad():
        p[1], t[2] = 0, 0
    loss, expected = ops.negative_cosine(p, t), plain(p, t)
    torch.testing.assert_close(loss, expected)
    (found,), (wanted,) = torch.autograd.grad(loss, p), torch.autograd.grad(expected, p)
    assert found.isfinite().all()
    torch.testing.assert_close(found[[0, 2, 3]], wanted[[0, 2, 3]])


def test_loss_scale_reaches_the_gradient(kernels):
    p, t = leaf(7, 60, dtype=torch.float16), torch.randn(7, 60)
    (scaled,) = torch.autograd.grad(ops.negative_cosine(p, t) * 1024, p)
    (expected,) = torch.autograd.grad(plain(p.float(), t) * 1024, p)
    torch.testing.assert_close(scaled, expected, rtol=1e-3, atol=1e-3)


def test_statistics(kernels):
    p, t = torch.randn(7, 60), torch.randn(7, 60)
    _, statistics = ops.negative_cosine_forward(p, t)
    expected = torch.stack((F.cosine_similarity(p, t), 1 / p.norm(dim=1), 1 / t.norm(dim=1)))
    torch.testing.assert_close(statistics, expected)


def test_no_rows(kernels):
    p = leaf(0, 20)
    loss = ops.negative_cosine(p, torch.empty(0, 20))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, p)[0].shape == (0, 20)


def test_reference_in_float64():
    p, t = torch.randn(7, 60).double(), torch.randn(7, 60).double()
    torch.testing.assert_close(ops.negative_cosine.reference(p, t), plain(p, t), rtol=0, atol=1e-14)


def test_opcheck(kernels):
    p, t = leaf(3, 20), torch.randn(3, 20)
    opcheck(torch.ops.eva_fast.negative_cosine.default, (p, t))
    inputs = (torch.tensor(1.5), p.detach(), t, torch.rand(3, 3))
    opcheck(torch.ops.eva_fast.negative_cosine_backward.default, inputs)


def test_compiled():
    check_compiled(ops.negative_cosine, (leaf(3, 20), torch.randn(3, 20)))


BAD = {
    "p has shape": lambda p, t: (p[0], t),
    "p has dtype": lambda p, t: (p.long(), t),
    "p has strides": lambda p, t: (p.t().contiguous().t(), t),
    "t has shape": lambda p, t: (p, t[:, :-1]),
    "t is on device": lambda p, t: (p, t.to("meta")),
    "t requires grad": lambda p, t: (p, t.requires_grad_()),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    with pytest.raises(ValueError, match=f"negative_cosine: .*{message}"):
        ops.negative_cosine(*BAD[message](torch.randn(3, 20), torch.randn(3, 20)))
