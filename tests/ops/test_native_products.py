"""C++ matrix products, and what runs on them, at every instruction set this CPU has."""

import pytest
import torch

from eva_fast import ops
from eva_fast.ops import choose
from eva_fast.ops.gemm import matmul
from eva_fast.ops.linear import linear, weight_gradient
from tests.ops.helpers import (
    Accuracy,
    check_against_float64,
    leaf,
    needs_native,
)

pytestmark = needs_native


# rows, columns, depth: below a tile, edges of tiles, several passes of depth and blocks of columns;
# the last B is more than what is packed at a time, and its last part is smaller
PRODUCTS = [
    (1, 1, 1), (7, 5, 9), (13, 33, 64), (130, 66, 391), (50, 790, 20), (257, 60, 1600),
    (30, 1500, 1601),
]  # fmt: skip


@pytest.mark.parametrize("size", PRODUCTS, ids=str)
@pytest.mark.parametrize("transposed", ["", "a", "b", "ab"])
def test_gemm_against_float64(isa, size, transposed):
    rows, columns, depth = size
    a = torch.randn(depth, rows).t() if "a" in transposed else torch.randn(rows, depth)
    b = torch.randn(columns, depth).t() if "b" in transposed else torch.randn(depth, columns)
    bias = torch.randn(columns)
    accuracy = Accuracy()
    for shift in (None, bias):
        exact = a.double() @ b.double() + (0 if shift is None else shift.double())
        # summed in the order of a plain loop, in float32: what a product may cost in rounding
        steps = (a.t()[:, :, None] * b[:, None, :]).unbind(0) if depth <= 64 else None
        if steps is None:
            plain = torch.addmm(bias, a, b) if shift is not None else a @ b
        else:
            plain = torch.zeros(rows, columns)
            for step in steps:
                plain = plain + step
            plain = plain if shift is None else plain + shift
        error = (matmul(a, b, shift).double() - exact).abs().max().item()
        # the classical bound for a sum in one go; MKL's own error varies with its version
        bound = 2 * max((plain.double() - exact).abs().max().item(), 6e-8 * depth**0.5 * 2)
        assert error <= bound
        accuracy.add("sanity", matmul(a, b, shift), plain, exact)


def test_gemm_takes_slices_of_wider_matrices(isa):
    wide = torch.randn(40, 90)
    a, b = wide[3:30, 5:64], wide[:, 7:30][:, :13].t()
    exact = a[:, :40].double() @ b.t().double()
    found = matmul(a[:, :40], b.t())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    both = torch.randn(6, 8, 10)[:, :, 3]  # no stride of 1
    exact = both.double() @ both.t().double()
    torch.testing.assert_close(matmul(both, both.t()).double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(0, 5, 3), (5, 0, 3), (5, 3, 0)], ids=str)
def test_gemm_of_nothing(isa, size):
    rows, columns, depth = size
    bias = torch.randn(columns)
    found = matmul(torch.randn(rows, depth), torch.randn(depth, columns), bias)
    torch.testing.assert_close(found, bias.expand(rows, columns))


@pytest.mark.parametrize("size", [(300, 70, 500), (400, 1500, 1601)], ids=str)
def test_gemm_gives_the_same_bits_with_any_number_of_threads(size):
    rows, columns, depth = size
    a, b = torch.randn(rows, depth), torch.randn(depth, columns)
    choose.set_kernels("native")
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(matmul(a, b))
    finally:
        torch.set_num_threads(before)
        choose.set_kernels("auto")
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_linear_has_the_gradients_of_pytorch(isa):
    x, weight, bias = leaf(3, 7, 20), leaf(11, 20), leaf(11)
    check_against_float64(linear, torch.nn.functional.linear, lambda: (x, weight, bias))
    assert weight_gradient(x[0], x[0], torch.bfloat16).dtype == torch.bfloat16


def test_codes(isa):
    """Tiles and their edges under the running argmax; rows of logits that no vector fits."""
    if isa == "baseline":
        pytest.skip("products need AVX2")
    z, codebook = torch.randn(150, 20), torch.randn(403, 20)
    found = ops.nearest_code(z, codebook, True)
    for a, b in zip(found, ops.nearest_code.reference(z, codebook, True), strict=True):
        torch.testing.assert_close(a, b)

    def inputs():
        weight = leaf(83, 20, scale=0.2)
        return leaf(19, 20), weight, leaf(83), torch.randint(83, (19,))

    def loss(*arguments):
        return ops.linear_cross_entropy(*arguments)[0]

    check_against_float64(loss, ops.linear_cross_entropy.reference, inputs)
