import pytest
import torch
from torch._subclasses import FakeTensorMode

from eva_fast import ops


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=["e4m3", "e5m2"])
@pytest.mark.parametrize("shape", [(1, 16), (37, 80), (1100, 16), (20, 1408)], ids=str)
def test_against_float64(kernels, shape, dtype):
    q, scale = (torch.randn(shape) * 20).to(dtype), torch.tensor(0.25)
    expected = q.double().norm(dim=1).max() * 0.25
    found = ops.largest_row_norm(q, scale)
    assert found.dtype == torch.float32 and found.shape == ()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_a_part_of_the_rows(kernels):
    q = torch.randn(48, 32).to(torch.float8_e4m3fn)
    part = q[32:]
    expected = part.double().norm(dim=1).max()
    torch.testing.assert_close(ops.largest_row_norm(part, torch.tensor(1.0)).double(), expected)


def test_what_is_not_finite_shows(kernels):
    q = torch.ones(20, 16).to(torch.float8_e4m3fn)
    assert ops.largest_row_norm(q, torch.tensor(torch.nan)).isnan()
    q[3, 5] = torch.nan
    assert ops.largest_row_norm(q, torch.tensor(1.0)).isnan()


def test_nothing(kernels):
    for shape in ((0, 16), (16, 16)):
        q = torch.zeros(shape).to(torch.float8_e4m3fn)
        assert ops.largest_row_norm(q, torch.tensor(2.0)) == 0


def test_bad_use():
    q = torch.zeros(4, 16).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="q has dtype torch.float32"):
        ops.largest_row_norm(q.float(), torch.tensor(1.0))
    with pytest.raises(ValueError, match="scale has shape"):
        ops.largest_row_norm(q, torch.ones(4))


def test_under_fake_tensors():
    """opcheck compares outputs in a way that 8-bit inputs do not know."""
    with FakeTensorMode():
        q, scale = torch.empty(5, 16, dtype=torch.float8_e4m3fn), torch.empty(())
        found = ops.largest_row_norm(q, scale)
    assert found.shape == () and found.dtype == torch.float32
