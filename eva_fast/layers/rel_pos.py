"""An additive attention bias that depends on where two patches stand to each other.

    bias[h, i, j] = table[row(i, j), h]

A patch i and a patch j of the grid (h, w) share the row (y_i - y_j + h-1)(2w-1) + (x_i - x_j + w-1);
three more rows are for the CLS token in front: asking of a patch (n-3), asked by a patch (n-2), of
itself (n-1), n rows in all. One table can serve all blocks (BEiT's `use_shared_rel_pos_bias`, Bao et
al. 2021; the index is its code's).
"""

import torch
from torch import Tensor, nn

from eva_fast.ops.relative_bias import relative_bias, sort_pairs

SPECIAL_ROWS = 3


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


class RelativePositionBias(nn.Module):
    """The shared table and the bias of all heads that it makes: `bias()` is [H, T, T], in the table's
    dtype. The table is initially 0. grid: patches down and across, T = h w + 1."""

    index: Tensor
    order: Tensor
    starts: Tensor

    def __init__(self, grid: tuple[int, int], num_heads: int):
        super().__init__()
        rows = table_rows(grid)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, num_heads))
        index = relative_position_index(grid)
        pairs = {"index": index, **dict(zip(("order", "starts"), sort_pairs(index, rows)))}
        device = self.relative_position_bias_table.device  # "meta" where a caller only counts
        for name, tensor in pairs.items():
            self.register_buffer(name, tensor.to(device), persistent=False)

    def forward(self) -> Tensor:
        return relative_bias(self.relative_position_bias_table, self.index, self.order, self.starts)
