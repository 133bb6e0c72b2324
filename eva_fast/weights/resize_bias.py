"""Tables of relative position biases for another grid of patches, as BEiT's code and timm resize them.

Offsets near 0 keep their places, far ones are spread: the old offset k stands at 1 + q + ... + q^(k-1)
of the new grid, with that q which takes the farthest old offset to the farthest new one
(microsoft/unilm, beit/run_class_finetuning.py). Between them timm is linear, the official code a
cubic spline. Both are linear in the table and separate in rows and columns, so a matrix each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eva_fast.errors import UsageError
from eva_fast.layers.rel_pos import SPECIAL_ROWS, table_rows
from eva_fast.weights.hub import library
from eva_fast.weights.resize import check

Grid = tuple[int, int]
SMALLEST, LARGEST, CLOSE = 1.01, 1.5, 1e-6
"""Of q, and how near the bisection takes it: the official code's numbers."""


def resize_relative_bias(table: Tensor, old: Grid, new: Grid, resize: str = "timm") -> Tensor:
    """The table [(2h-1)(2w-1) + 3, heads] of grid `old` (h, w) for grid `new`; the three rows of CLS
    stay. resize: one of `RESIZES`; "official" needs scipy. UsageError for a table of another grid."""
    check(resize)
    if len(table) != table_rows(old):
        raise UsageError(
            f"a table of relative positions has {len(table)} rows, expected {table_rows(old)} for {old}"
        )
    if old == new:
        return table
    offsets, special = table.split((len(table) - SPECIAL_ROWS, SPECIAL_ROWS))
    down, right = (_matrix(a, b, resize) for a, b in zip(old, new))
    values = offsets.detach().double().cpu().view(2 * old[0] - 1, 2 * old[1] - 1, -1)
    resized = torch.einsum("yi,xj,ijh->yxh", down, right, values).flatten(0, 1)
    return torch.cat((resized.to(table), special))


def _matrix(old: int, new: int, resize: str) -> Tensor:
    """From values at the offsets of `old` patches a side to those of `new`: [2 new - 1, 2 old - 1]."""
    given = _places(old, new)
    wanted = torch.arange(1.0 - new, new, dtype=torch.float64).clamp(given[0], given[-1])
    if resize == "official":
        splines = library("scipy.interpolate", "scipy", "resize='official' of a bias")
        unit = torch.eye(len(given), dtype=torch.float64).numpy()
        degree = min(3, len(given) - 1)
        return torch.from_numpy(splines.make_interp_spline(given, unit, degree)(wanted))
    after = torch.searchsorted(given, wanted).clamp(1, len(given) - 1)
    before = after - 1
    share = (wanted - given[before]) / (given[after] - given[before])
    matrix = torch.zeros(len(wanted), len(given), dtype=torch.float64)
    matrix.scatter_(1, before[:, None], 1 - share[:, None])
    return matrix.scatter_(1, after[:, None], share[:, None])


def _places(old: int, new: int) -> Tensor:
    """Where the offsets of `old` patches a side stand among those of `new`, ascending: [2 old - 1]."""
    low, high = SMALLEST, LARGEST
    while high - low > CLOSE:
        q = (low + high) / 2
        if (1 - q ** (old - 1)) / (1 - q) > new - 1:
            high = q
        else:
            low = q
    steps = q ** torch.arange(old - 1, dtype=torch.float64)
    far = torch.cat((torch.zeros(1, dtype=torch.float64), steps.cumsum(0)))
    return torch.cat((-far.flip(0), far[1:]))
