import pytest
import torch
import torch.nn.functional as F

from eva_fast import ops
from tests.ops.helpers import (
    Accuracy,
    check_against_float64,
    check_compiled,
    double,
    leaf,
    opcheck,
    outputs_and_gradients,
    rows_apart,
    with_dtypes,
)


def plain(h, bias, kind):
    z = h if bias is None else h + bias.to(h.dtype)
    if kind == "quick":
        return z * torch.sigmoid(1.702 * z)
    return F.gelu(z, approximate="tanh" if kind == "tanh" else "none")


CASES = {
    "one row of 60": ((1, 60), True, "erf"),
    "7 rows of 279": ((7, 279), True, "erf"),
    "no bias, 2 x 9 rows of 88": ((2, 9, 88), False, "erf"),
    "quick": ((7, 176), True, "quick"),
    "quick, no bias": ((3, 60), False, "quick"),
    "tanh": ((7, 279), True, "tanh"),
    "several tiles of rows and columns": ((37, 1408), True, "erf"),
    "3360 rows of 20": ((3360, 20), True, "erf"),
}


@pytest.mark.parametrize(("case", "dtype"), with_dtypes(CASES))
def test_against_float64(kernels, case, dtype):
    shape, with_bias, kind = CASES[case]

    def make():
        bias = leaf(shape[-1], dtype=dtype) if with_bias else None
        return leaf(*shape, dtype=dtype, scale=2.0), bias, kind

    check_against_float64(ops.bias_gelu, plain, make, draws=3 if shape[0] < 30 else 1)


@pytest.mark.parametrize("kind", ["erf", "tanh"])
def test_on_the_whole_line(kernels, kind):
    """A polynomial that suits normal inputs could still be wrong between or beyond them."""
    z = torch.linspace(-14, 14, 20_001).view(1, -1).requires_grad_()
    accuracy = Accuracy()
    found = outputs_and_gradients(ops.bias_gelu, (z, None, kind), [torch.ones_like(z)])
    usual = outputs_and_gradients(plain, (z, None, kind), [torch.ones_like(z)])
    exact = outputs_and_gradients(plain, (double(z), None, kind), [torch.ones_like(z)])
    for name, values in zip(("g", "dh"), zip(found, usual, exact)):
        accuracy.add(name, *values)
    accuracy.check()


@pytest.mark.filterwarnings("ignore:overflow encountered")  # to inf, as meant
@pytest.mark.parametrize("kind", ["erf", "tanh", "quick"])
def test_tails(kernels, kind):
    """Far from zero: no overflow, no NaN, the value itself on the right and 0 on the left."""
    z = torch.tensor([[-1e4, -90.0, -10.0, 0.0, 10.0, 90.0, 1e4]]).requires_grad_()
    g = ops.bias_gelu(z, None, kind)
    (gradient,) = torch.autograd.grad(g.sum(), z)
    expected = torch.where(z < 0, 0.0, z)
    torch.testing.assert_close(g, expected, rtol=1e-6, atol=1e-5)
    expected = torch.tensor([[0, 0, 0, 0.5, 1, 1, 1]])
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-5)


def test_float32_bias_with_16_bit_rows(kernels):
    def make():
        return leaf(7, 60, dtype=torch.float16), leaf(60), "erf"

    check_against_float64(ops.bias_gelu, plain, make)


def test_strided_rows(kernels):
    def make():
        return rows_apart(leaf(2, 5, 60)), leaf(60), "erf"

    check_against_float64(ops.bias_gelu, plain, make)


@pytest.mark.parametrize(("kind", "dtype"), with_dtypes(("erf", "tanh", "quick"), in_all=1))
def test_backward_rebuilds_the_activation(kernels, kind, dtype):
    """What the MLP's backward calls: dh, gelu(h + b) again and the bias gradient in one pass."""
    accuracy = Accuracy()
    for _ in range(4):
        inputs = leaf(9, 176, dtype=dtype), leaf(176, dtype=dtype), kind
        dg = torch.randn(9, 176, dtype=dtype)
        with torch.no_grad():
            dh, g, dbias = ops.bias_gelu_backward(dg, *inputs, want_g=True)
            torch.testing.assert_close(g, ops.bias_gelu(*inputs), rtol=0, atol=0)
        usual = outputs_and_gradients(plain, inputs, [dg])
        exact = outputs_and_gradients(plain, [double(i) for i in inputs], [dg])
        for name, a, p, e in zip(("g", "dh", "dbias"), (g, dh, dbias), usual, exact, strict=True):
            accuracy.add(name, a, p, e)
    accuracy.check()


def test_sums_without_a_bias_argument(kernels):
    """Where a GEMM added the bias already, its gradient is still the column sums of dh."""
    h, bias, dg = torch.randn(7, 60), torch.randn(60), torch.randn(7, 60)
    _, nothing, dbias = ops.bias_gelu_backward(dg, h + bias, None)
    expected = ops.bias_gelu_backward(dg, h, bias)[2]
    assert nothing.numel() == 0
    torch.testing.assert_close(dbias, expected, rtol=1e-5, atol=1e-5)
    assert ops.bias_gelu_backward(dg, h, bias, want_bias=False)[2].numel() == 0


def test_no_rows(kernels):
    h, bias = leaf(0, 60), leaf(60)
    g = ops.bias_gelu(h, bias)
    assert g.shape == (0, 60)
    dh, dbias = torch.autograd.grad(g, (h, bias), g)
    assert dh.shape == (0, 60) and dbias.shape == (60,) and not dbias.any()


def test_reference_in_float64():
    for kind in ("erf", "tanh", "quick"):
        h, bias = torch.randn(5, 60).double(), torch.randn(60).double()
        expected = plain(h, bias, kind)
        torch.testing.assert_close(
            ops.bias_gelu.reference(h, bias, kind), expected, rtol=0, atol=1e-14
        )


def test_opcheck(kernels):
    opcheck(torch.ops.eva_fast.bias_gelu.default, (leaf(3, 20), leaf(20), "erf"))
    opcheck(torch.ops.eva_fast.bias_gelu.default, (leaf(2, 3, 20), None, "quick"))
    dg, h, bias = torch.randn(3, 20), torch.randn(3, 20), torch.randn(20)
    backward = torch.ops.eva_fast.bias_gelu_backward.default
    opcheck(backward, (dg, h, bias, "erf", True, True))
    opcheck(backward, (dg, h, None, "quick", False, False))


def test_compiled():
    check_compiled(ops.bias_gelu, (leaf(3, 20), leaf(20), "erf"))


BAD = {
    "unknown kind 'relu'": lambda h, b: (h, b, "relu"),
    "bias has shape": lambda h, b: (h, b[:-1], "erf"),
    "bias has dtype": lambda h, b: (h, b.half(), "erf"),
    "h has dtype": lambda h, b: (h.int(), b, "erf"),
    "h has shape": lambda h, b: (h[0], b, "erf"),
    "h has strides": lambda h, b: (h.t().contiguous().t(), b, "erf"),
    "bias is on device": lambda h, b: (h, b.to("meta"), "erf"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    with pytest.raises(ValueError, match=f"bias_gelu: .*{message}"):
        ops.bias_gelu(*BAD[message](torch.randn(3, 20), torch.randn(20)))
