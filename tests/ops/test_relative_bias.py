"""The bias from a table of relative positions, and the table's gradient."""

import pytest
import torch

from eva_fast.ops import registry
from eva_fast.ops.choose import force
from eva_fast.ops.relative_bias import OP, relative_bias, sort_pairs
from tests.conftest import on_device, on_gpu
from tests.ops.helpers import check_against_float64, check_compiled, leaf, opcheck

if registry.interpreted():
    IMPLEMENTATIONS = [pytest.param(("triton", "cpu"), id="triton", marks=pytest.mark.interpreted)]
    if "triton" not in OP.implementations:
        pytest.skip("has no Triton kernel", allow_module_level=True)
else:
    IMPLEMENTATIONS = [pytest.param(("torch", "cpu"), id="torch")] + [
        pytest.param((name, "cuda"), id=f"{name} on a GPU", marks=on_gpu)
        for name in OP.implementations
    ]


@pytest.fixture(autouse=True, params=IMPLEMENTATIONS)
def implementation(request):
    name, device = request.param
    force("relative_bias", name)
    with on_device(device):
        yield name
    force("relative_bias")


def windows(side):
    """Swin's: rows of the table by the difference of row and column."""
    y, x = (t.flatten() for t in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    rows = (y[:, None] - y + side - 1) * (2 * side - 1) + x[:, None] - x + side - 1
    return rows, (2 * side - 1) ** 2


def with_cls(side):
    """BEiT's: three more rows for CLS as query, as key and as both."""
    inner, rows = windows(side)
    index = torch.full((side * side + 1, side * side + 1), rows + 1)
    index[1:, 1:] = inner
    index[0] = rows
    index[0, 0] = rows + 2
    return index, rows + 3


def inputs(made, heads, dtype=torch.float32):
    index, rows = made
    return leaf(rows, heads, dtype=dtype), index, *sort_pairs(index, rows)


def plain(table, index, *_):
    return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)


CASES = {
    "windows of 7 x 7": lambda: inputs(windows(7), 3),
    "4 x 4 patches and CLS": lambda: inputs(with_cls(4), 12),
    "a row that no pair takes": lambda: inputs((torch.tensor([[0, 3], [3, 3]]), 5), 2),
}


@pytest.mark.parametrize("case", CASES)
def test_against_float64(case):
    check_against_float64(relative_bias, plain, CASES[case], draws=1)


def test_in_place_of_the_pairs():
    table, index, order, starts = CASES["4 x 4 patches and CLS"]()
    bias = relative_bias(table, index, order, starts)
    assert bias.is_contiguous() and bias.shape == (12, 17, 17)
    torch.testing.assert_close(bias, relative_bias.reference(table, index, order, starts))
    torch.testing.assert_close(bias[:, 0, 0], table[-1])
    for row in (0, 24, len(table) - 1):
        pairs = order[starts[row] : starts[row + 1]]
        assert len(pairs) and (index.flatten()[pairs] == row).all()


def test_two_runs_give_the_same_bits():
    table, *rest = CASES["windows of 7 x 7"]()
    upstream = torch.randn(3, 49, 49).transpose(1, 2)
    once, again = (torch.autograd.grad(relative_bias(table, *rest), table, upstream) for _ in "ab")
    torch.testing.assert_close(once, again, rtol=0, atol=0)


def test_opcheck_and_compiled():
    arguments = inputs(with_cls(2), 2)
    opcheck(torch.ops.eva_fast.relative_bias.default, arguments)
    dbias = torch.randn(2, 5, 5)
    opcheck(torch.ops.eva_fast.relative_bias_backward.default, (dbias, *arguments[1:]))
    check_compiled(relative_bias, arguments)


def test_bad_arguments():
    table, index, order, starts = inputs(windows(2), 2)
    for arguments, words in (
        ((table[0], index, order, starts), r"table has shape \(2,\)"),
        ((table, index.int(), order, starts), "index has dtype torch.int32, expected int64"),
        ((table, index, order[1:], starts), r"order has shape \(15,\), expected \(16\)"),
        ((table[1:], index, order, starts), r"starts has shape \(10,\), expected \(9\)"),
    ):
        with pytest.raises(ValueError, match=f"relative_bias: {words}"):
            relative_bias(*arguments)
    with pytest.raises(ValueError, match=r"index must be in 0\.\.7, got 0 to 8"):
        sort_pairs(index, 8)
