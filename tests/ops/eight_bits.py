"""How 8-bit results are judged: each is the value of the format that is nearest to float64's."""

import torch
from torch import Tensor


def codes(dtype: torch.dtype) -> Tensor:
    """All finite values of a format, ascending, float64."""
    values = torch.arange(256, dtype=torch.uint8, device="cpu").view(dtype).double()
    return values[values.isfinite()].unique()


def nearest_distance(x: Tensor, values: Tensor) -> Tensor:
    """Distance of each x to the nearest of the values."""
    after = torch.searchsorted(values, x).clamp(max=len(values) - 1)
    return torch.minimum((x - values[after]).abs(), (x - values[(after - 1).clamp(min=0)]).abs())


def check_nearest(q: Tensor, scale: Tensor, exact: Tensor, error: float = 1e-6) -> None:
    """q is a value nearest to exact / scale, or to something that is off by `error` of it: what comes
    from float32 may fall on the other side of a middle."""
    wanted = exact.double().cpu() / scale.double().cpu()
    distance = (wanted - q.double().cpu()).abs()
    room = error * (wanted.abs() + wanted.square().mean().sqrt())
    assert not q.float().isnan().any()
    assert (distance <= nearest_distance(wanted, codes(q.dtype)) + 2 * room).all()


def check_columns(columns: Tensor, q: Tensor) -> None:
    """columns is the transpose of q, padded with zeros to a multiple of 16."""
    rows = -(-len(q) // 16) * 16
    assert columns.shape == (q.shape[1], rows)
    assert torch.equal(columns[:, : len(q)].float(), q.float().t())
    assert not columns[:, len(q) :].float().any()
