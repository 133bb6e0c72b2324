"""Windows of a map of tokens, each by its definition."""

import math

import pytest
import torch

from eva_fast.errors import UsageError
from eva_fast.layers.window import UNSEEN, Windows, inverse

CASES = [Windows(8, 4), Windows(8, 4, 2), Windows(6, 3, 1), Windows(5, 5), Windows(9, 3, 1)]


def places(w):
    """(row, column) of each place's token before the shift around the border, int64 [N, 2]."""
    order = w.order()
    return torch.stack((order // w.side, order % w.side), -1)


@pytest.mark.parametrize("w", CASES, ids=str)
def test_order(w):
    """Window after window, in reading order; around the border where shifted."""
    expected = [
        (y + dy + w.shift) % w.side * w.side + (x + dx + w.shift) % w.side
        for y in range(0, w.side, w.size)
        for x in range(0, w.side, w.size)
        for dy in range(w.size)
        for dx in range(w.size)
    ]
    assert w.order().tolist() == expected
    assert torch.equal(w.order()[inverse(w.order())], torch.arange(w.side**2))


@pytest.mark.parametrize("w", CASES, ids=str)
def test_mask(w):
    """Two tokens of a window see each other where they are that near on the map itself."""
    mask = w.mask()
    if not w.shift:
        assert mask is None
        return
    yx = places(w).view(w.count, w.area, 2)
    near = ((yx[:, :, None] - yx[:, None]).abs() < w.size).all(-1)
    assert torch.equal(mask == 0, near)
    assert torch.equal(mask == UNSEEN, ~near)


@pytest.mark.parametrize("w", CASES, ids=str)
def test_offsets(w):
    """A pair's row of the table is the one of its distance."""
    index, table = w.relative_index(), w.log_offsets()
    for i, j in ((0, 0), (0, w.area - 1), (w.area - 1, 0), (1, w.size), (w.area // 2, 2)):
        expected = []
        for a, b in zip(divmod(i, w.size), divmod(j, w.size)):
            v = 8 * (a - b) / (w.size - 1)
            expected.append(math.copysign(math.log2(abs(v) + 1) / math.log2(8), v))
        found = table[index[i, j]]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-7)


def test_fitting():
    assert Windows.fitting(7, 14, shifted=True) == Windows(7, 7)
    assert Windows.fitting(14, 14, shifted=True) == Windows(14, 14)
    assert Windows.fitting(28, 14, shifted=True) == Windows(28, 14, 7)
    assert Windows.fitting(28, 14, shifted=False) == Windows(28, 14)
    with pytest.raises(UsageError, match="windows of 7 do not fill a map of 16x16"):
        Windows.fitting(16, 7, shifted=False)
