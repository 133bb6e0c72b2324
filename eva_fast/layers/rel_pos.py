"""An additive attention bias that depends on where two patches stand to each other.

    bias[h, i, j] = table[row(i, j), h]

A patch i and a patch j of the grid (h, w) share the row (y_i - y_j + h-1)(2w-1) + (x_i - x_j + w-1);
three more rows are for the CLS token in front: asking of a patch (n-3), asked by a patch (n-2), of
itself (n-1), n rows in all. One table can serve all blocks (BEiT's `use_shared_rel_pos_bias`, Bao et
al. 2021; the index is its code's).

Decoupled, there is a table of rows and one of columns, whose biases are added (EVA-01's code). Patches
of the rows y_i and y_j share row y_j - y_i + h-1 of the first, which has three more for the CLS token.
"""

import torch
from torch import Tensor, nn

from eva_fast.ops.relative_bias import relative_bias, sort_pairs

SPECIAL_ROWS = 3
PAIRS = ("index", "order", "starts")
AXES = ("high", "width")
"""As the official code names a grid's rows and columns."""


def table_rows(grid: tuple[int, int]) -> int:
    """Rows of the table for a grid of patches and CLS."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + SPECIAL_ROWS


def relative_position_index(grid: tuple[int, int]) -> Tensor:
    """Rows of the table, on the CPU: int64 [T, T] for (asking, asked) token, CLS first: T = h w + 1."""
    height, width = grid
    y, x = (
        t.flatten()
        for t in torch.meshgrid(
            torch.arange(height, device="cpu"), torch.arange(width, device="cpu"), indexing="ij"
        )
    )
    down, right = y[:, None] - y[None] + height - 1, x[:, None] - x[None] + width - 1
    rows, tokens = table_rows(grid), height * width + 1
    index = torch.empty(tokens, tokens, dtype=torch.int64, device="cpu")
    index[1:, 1:] = down * (2 * width - 1) + right
    index[0], index[:, 0], index[0, 0] = rows - 3, rows - 2, rows - 1
    return index


def decoupled_index(grid: tuple[int, int], axis: int) -> Tensor:
    """As `relative_position_index`, rows of the table of one axis, 0 down and 1 across."""
    height, width = grid
    place = torch.arange(height * width, device="cpu")
    place = place // width if axis == 0 else place % width
    size, tokens = grid[axis], height * width + 1
    index = torch.empty(tokens, tokens, dtype=torch.int64, device="cpu")
    index[1:, 1:] = place[None] - place[:, None] + size - 1
    index[0], index[:, 0], index[0, 0] = 2 * size - 1, 2 * size, 2 * size + 1
    return index


def register_pairs(module: nn.Module, prefix: str, index: Tensor, rows: int) -> None:
    """Buffers of `relative_bias` beside the table, which no file holds."""
    device = next(module.parameters()).device  # "meta" where a caller only counts
    for name, tensor in zip(PAIRS, (index, *sort_pairs(index, rows))):
        module.register_buffer(prefix + name, tensor.to(device), persistent=False)


def pairs_of(module: nn.Module, prefix: str) -> list[Tensor]:
    return [module.get_buffer(prefix + name) for name in PAIRS]


class RelativePositionBias(nn.Module):
    """The shared table and the bias of all heads that it makes: `bias()` is [H, T, T], in the table's
    dtype. The table is initially 0. grid: patches down and across, T = h w + 1."""

    def __init__(self, grid: tuple[int, int], num_heads: int):
        super().__init__()
        rows = table_rows(grid)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, num_heads))
        register_pairs(self, "", relative_position_index(grid), rows)

    def forward(self) -> Tensor:
        return relative_bias(self.relative_position_bias_table, *pairs_of(self, ""))


class DecoupledRelativePositionBias(nn.Module):
    """The two tables and the sum of what they make: `bias()` is [H, T, T], in the tables' dtype. They
    are initially 0. grid: patches down and across, T = h w + 1."""

    def __init__(self, grid: tuple[int, int], num_heads: int):
        super().__init__()
        for axis, name in enumerate(AXES):
            rows = 2 * grid[axis] - 1 + SPECIAL_ROWS
            table = nn.Parameter(torch.zeros(rows, num_heads))
            self.register_parameter(f"relative_position_bias_for_{name}", table)
            register_pairs(self, f"{name}_", decoupled_index(grid, axis), rows)

    def forward(self) -> Tensor:
        down, across = (
            relative_bias(self.table(name), *pairs_of(self, f"{name}_")) for name in AXES
        )
        return down + across

    def table(self, name: str) -> Tensor:
        return self.get_parameter(f"relative_position_bias_for_{name}")
