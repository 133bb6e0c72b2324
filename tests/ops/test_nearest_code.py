import pytest
import torch
import torch.nn.functional as F

from eva_fast import ops
from tests.ops.helpers import opcheck, rows_apart

CASES = {
    "one row, one code": (1, 1, 8),
    "7 rows, 24 codes of 8": (7, 24, 8),
    "77 rows, 401 codes of 20": (77, 401, 20),
    "150 rows, 1000 codes of 32": (150, 1000, 32),
}


def inputs(rows, codes, width, dtype=torch.float32):
    z, codebook = (torch.randn(n, width, dtype=dtype) for n in (rows, codes))
    return F.normalize(z, dim=1), F.normalize(codebook, dim=1)


@pytest.mark.parametrize("case", CASES)
def test_against_the_one_hot_formulation_in_float64(kernels, case):
    z, codebook = inputs(*CASES[case])
    index, counts, sums = ops.nearest_code(z, codebook, True)
    expected, exact_counts, exact_sums = ops.nearest_code.reference(
        z.double(), codebook.double(), True
    )
    products = z.double() @ codebook.double().t()
    close = products.amax(1) - products.gather(1, index[:, None])[:, 0]
    assert close.max() < 1e-6  # the float64 choice, or as good as it
    if bool((index == expected).all()):
        torch.testing.assert_close(counts, exact_counts.float(), rtol=0, atol=0)
        torch.testing.assert_close(sums, exact_sums.float(), rtol=1e-6, atol=1e-6)
    assert index.dtype == torch.int64 and counts.sum() == len(z)
    alone = ops.nearest_code(z, codebook)
    torch.testing.assert_close(alone[0], index, rtol=0, atol=0)
    assert alone[1].numel() == alone[2].numel() == 0


def test_the_first_of_equal_codes(kernels):
    z, codebook = inputs(9, 70, 16)
    codebook[[3, 30, 69]] = z[4].clone()
    codebook[50] = codebook[40] = z[5].clone()
    index = ops.nearest_code(z, codebook)[0]
    assert index[4] == 3 and index[5] == 40


def test_strided_rows(kernels):
    z, codebook = inputs(33, 50, 20)
    found = ops.nearest_code(rows_apart(z), rows_apart(codebook), True)
    for a, b in zip(found, ops.nearest_code(z, codebook, True), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_rows_that_are_not_finite_get_some_code(kernels):
    z, codebook = inputs(20, 40, 8)
    z[3], z[7] = torch.nan, -torch.inf
    index = ops.nearest_code(z, codebook, True)[0]
    assert index.min() >= 0 and index.max() < 40


def test_no_rows(kernels):
    index, counts, sums = ops.nearest_code(torch.empty(0, 8), torch.randn(5, 8), True)
    assert index.shape == (0,) and not counts.any() and not sums.any()
    assert counts.shape == (5,) and sums.shape == (5, 8)


def test_opcheck(kernels):
    for want_sums in (False, True):
        opcheck(torch.ops.eva_fast.nearest_code.default, (*inputs(7, 9, 8), want_sums))


def test_compiled():
    z, codebook = inputs(7, 9, 8)
    compiled = torch.compile(ops.nearest_code, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(z, codebook, True), ops.nearest_code(z, codebook, True), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


BAD = {
    "z has dtype": lambda z, w: (z.bfloat16(), w),
    "codebook has shape": lambda z, w: (z, w[:, :-1]),
    "codebook has dtype": lambda z, w: (z, w.double()),
    "codebook has no codes": lambda z, w: (z, w[:0]),
    "z requires grad": lambda z, w: (z.requires_grad_(), w),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    with pytest.raises(ValueError, match=f"nearest_code: .*{message}"):
        ops.nearest_code(*BAD[message](*inputs(3, 4, 8)))
