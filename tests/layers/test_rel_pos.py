"""The relative position bias: timm's index, the shape, and gradients of shared rows."""

import pytest
import torch
from timm.models.beit import gen_relative_position_index

from eva_fast.layers import RelativePositionBias, plain
from eva_fast.layers.rel_pos import relative_position_index, table_rows


@pytest.mark.parametrize("grid", [(3, 3), (2, 4), (1, 1)], ids=str)
def test_the_index_is_timms(grid):
    assert torch.equal(relative_position_index(grid), gen_relative_position_index(grid))
    assert int(relative_position_index(grid).max()) == table_rows(grid) - 1


@pytest.mark.parametrize("kind", [RelativePositionBias, plain.RelativePositionBias])
def test_the_bias_is_the_tables_rows_head_by_head(kind):
    module = kind((2, 3), 4)
    table = module.relative_position_bias_table
    assert not table.any() and list(module.state_dict()) == ["relative_position_bias_table"]
    with torch.no_grad():
        table.copy_(torch.randn_like(table))
    bias = module()
    assert bias.shape == (4, 7, 7)
    index = relative_position_index((2, 3))
    for head, i, j in [(0, 0, 0), (1, 0, 5), (2, 5, 0), (3, 2, 6)]:
        assert bias[head, i, j] == table[index[i, j], head]
    upstream = torch.randn_like(bias)
    (found,) = torch.autograd.grad(bias, table, upstream)
    expected = torch.zeros(table.shape, dtype=torch.float64)
    expected.index_add_(0, index.flatten(), upstream.double().flatten(1).t())
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_on_the_meta_device():
    with torch.device("meta"):
        module = RelativePositionBias((2, 3), 4)
    assert module().shape == (4, 7, 7) and module().is_meta
