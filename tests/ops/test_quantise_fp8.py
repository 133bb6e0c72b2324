import pytest
import torch

from eva_fast import ops
from tests.ops.eight_bits import check_columns, codes, nearest_distance
from tests.ops.helpers import opcheck

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FORMATS = pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=["e4m3", "e5m2"])
LARGEST = {E4M3: 448.0, E5M2: 57344.0}


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(1, 16), (37, 80), (257, 32), (16, 7)], ids=str)
@FORMATS
def test_nearest_value_of_the_format(kernels, shape, dtype, source):
    x = (torch.randn(shape) * torch.randn(shape).exp() * 3).to(source)
    found = ops.quantise_fp8(x, None, dtype)
    wide, scale = x.double().cpu(), found.scale.double().cpu()
    assert scale.log2().item() % 1 == 0 and found.scale.dtype == torch.float32
    most = (wide.abs().max() / scale).item()
    assert LARGEST[dtype] / 2 < most <= LARGEST[dtype]
    q = found.rows.double().cpu()
    distance = nearest_distance(wide / scale, codes(dtype))
    assert torch.equal((wide / scale - q).abs(), distance)
    check_columns(found.columns, found.rows)


@FORMATS
def test_each_layout_alone_and_a_known_scale(kernels, dtype):
    x = torch.randn(37, 48)
    both = ops.quantise_fp8(x, None, dtype)
    rows = ops.quantise_fp8(x, None, dtype, want_columns=False)
    columns = ops.quantise_fp8(x, rows.scale, dtype, want_rows=False)
    assert rows.columns.numel() == columns.rows.numel() == 0
    assert columns.scale is rows.scale and torch.equal(rows.scale, both.scale)
    assert torch.equal(rows.rows.float(), both.rows.float())
    assert torch.equal(columns.columns.float(), both.columns.float())


@pytest.mark.parametrize("count", [1, 7, 5000], ids="{} parts".format)
def test_parts_of_the_largest(kernels, count):
    """The scale comes from them alone."""
    x, parts = torch.randn(37, 48), torch.rand(count)
    parts[count // 2] = 8.0
    found = ops.quantise_fp8(x, largest=parts)
    expected = ops.quantise_fp8(x, torch.tensor(2.0**-5))  # 8 = 256 / 2^5, below 448
    assert found.scale == expected.scale
    assert torch.equal(found.rows.float(), expected.rows.float())
    assert torch.equal(found.columns.float(), expected.columns.float())
    parts[-1] = torch.nan
    assert ops.quantise_fp8(x, largest=parts).scale.isnan()


@FORMATS
def test_beyond_a_known_scale_it_saturates(kernels, dtype):
    x = torch.tensor([[1e6, -1e6, 1.0, 0.0]])
    found = ops.quantise_fp8(x, torch.tensor(0.5), dtype, want_columns=False).rows.float()
    assert found.tolist() == [[LARGEST[dtype], -LARGEST[dtype], 2.0, 0.0]]


@FORMATS
def test_scale_at_the_edges(kernels, dtype):
    """The largest value of the format stays, the next above it doubles the scale."""
    for largest, expected in ((1.75, 1.0), (1.7500001, 2.0), (1.0, 1.0), (3.5, 2.0)):
        x = torch.tensor([[0.25, -largest * LARGEST[dtype] / 1.75]])
        assert ops.quantise_fp8(x, None, dtype).scale.item() == expected


@FORMATS
def test_zeros_tiny_and_no_rows(kernels, dtype):
    for x in (torch.zeros(3, 16), torch.empty(0, 16)):
        rows, columns, scale = ops.quantise_fp8(x, None, dtype)
        assert scale.isfinite() and scale > 0
        assert rows.shape == x.shape and not rows.float().any() and not columns.float().any()
    x = torch.tensor([[1e-30, -1e-31, 0.0]])
    found = ops.quantise_fp8(x, None, dtype)
    torch.testing.assert_close(found.rows.float() * found.scale, x, rtol=0.13, atol=0)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@FORMATS
def test_what_is_not_finite_shows_in_the_scale(kernels, dtype, bad):
    x = torch.ones(5, 16)
    x[3, 7] = bad
    assert ops.quantise_fp8(x, None, dtype).scale.isnan()


def test_rows_apart(kernels):
    x = torch.randn(16, 20)
    found, expected = ops.quantise_fp8(x[:, :8]), ops.quantise_fp8(x[:, :8].clone())
    assert torch.equal(found.rows.float(), expected.rows.float())
    assert torch.equal(found.columns.float(), expected.columns.float())


def test_bad_use():
    with pytest.raises(ValueError, match="x has shape"):
        ops.quantise_fp8(torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match="x has dtype torch.float64"):
        ops.quantise_fp8(torch.ones(2, 3).double())
    with pytest.raises(ValueError, match="expected float8_e4m3fn or float8_e5m2"):
        ops.quantise_fp8(torch.ones(2, 3), None, torch.bfloat16)
    with pytest.raises(ValueError, match="largest has dtype torch.bfloat16"):
        ops.quantise_fp8(torch.ones(2, 3), largest=torch.ones(2).bfloat16())


def test_opcheck(kernels):
    for known, largest in ((None, None), (torch.tensor(0.25), None), (None, torch.ones(3))):
        given = torch.randn(5, 16), known, E4M3, True, False, largest
        opcheck(torch.ops.eva_fast.quantise_fp8.default, given)
