import pytest
import torch
import torch.nn.functional as F

from eva_fast import ops
from tests.ops.eight_bits import check_columns, check_nearest
from tests.ops.helpers import opcheck, rows_apart

BF16 = torch.bfloat16
KINDS = pytest.mark.parametrize("kind", ["erf", "quick"])
SHAPES = pytest.mark.parametrize("shape", [(1, 16), (37, 80), (130, 96)], ids=str)
# Of the kernels' gate against float64, at values of the size of the root mean square.
ERROR = 1e-5


def plain(h, bias, kind):
    z = h + bias
    return F.gelu(z) if kind == "erf" else z * torch.sigmoid(1.702 * z)


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["fp32", "bf16"])
@SHAPES
@KINDS
def test_forward_against_float64(kernels, kind, shape, dtype):
    h, bias, scale = (torch.randn(shape) * 2).to(dtype), torch.randn(shape[1]), torch.tensor(0.125)
    q = ops.bias_gelu_fp8(h, bias, kind, scale)
    check_nearest(q, scale, plain(h.double(), bias.double(), kind), ERROR)


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["fp32", "bf16"])
@SHAPES
@KINDS
def test_backward_against_float64(kernels, kind, shape, dtype):
    h, bias = (torch.randn(shape) * 2).to(dtype), torch.randn(shape[1])
    dg, scale = torch.randn(shape).to(dtype), torch.tensor(0.125)
    norms = torch.tensor(3.0), torch.tensor(0.5)
    found = ops.bias_gelu_fp8_backward(dg, h, bias, kind, scale, *norms)
    assert found.dh.scale == 2.0**-8  # 1.71 = 437.8 x 2^-8
    z = h.double().requires_grad_()
    exact = plain(z, bias.double(), kind)
    (dh,) = torch.autograd.grad(exact, z, dg.double())
    check_nearest(found.dh.rows, found.dh.scale, dh, ERROR)
    check_columns(found.dh.columns, found.dh.rows)
    g = found.g[:, : shape[0]].t()
    check_nearest(g, scale, exact.detach(), ERROR)
    check_columns(found.g, g)
    torch.testing.assert_close(found.dbias.double(), dh.sum(0), rtol=1e-5, atol=1e-4)


@KINDS
def test_no_gradient_goes_beyond_the_scale(kernels, kind):
    """dg = dr W where a row of dr points along a column of W, and h where GELU is steepest."""
    weight, dr = torch.randn(16, 80), torch.zeros(16, 16)
    dr[3] = weight[:, 7]
    q, w = (ops.quantise_fp8(t) for t in (dr, weight))
    dg = q.rows.float() * q.scale @ (w.rows.float() * w.scale)
    norms = (ops.largest_row_norm(t, s) for t, s in ((q.rows, q.scale), (w.columns, w.scale)))
    h = torch.full((16, 80), 1.4)
    scale = torch.tensor(0.125)
    dh = ops.bias_gelu_fp8_backward(dg, h, torch.zeros(80), kind, scale, *norms).dh
    assert 448 / 8 < dh.rows.float().max() < 448


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_what_is_not_finite_shows(kernels):
    h, bias, scale, one = (
        torch.ones(20, 32),
        torch.zeros(32),
        torch.tensor(0.125),
        torch.tensor(1.0),
    )
    h[3, 5] = torch.nan
    assert ops.bias_gelu_fp8(h, bias, "erf", scale)[3, 5].float().isnan()
    found = ops.bias_gelu_fp8_backward(h, h, bias, "erf", scale, one, one)
    assert found.dh.rows[3, 5].float().isnan() and found.g[5, 3].float().isnan()
    for norms in ((one, torch.tensor(torch.nan)), (torch.tensor(torch.inf), one)):
        found = ops.bias_gelu_fp8_backward(bias.expand(20, 32), h, bias, "erf", scale, *norms)
        assert found.dh.scale.isnan()


def test_rows_apart(kernels):
    h, dg, bias, scale = torch.randn(6, 48), torch.randn(6, 48), torch.randn(48), torch.tensor(0.25)
    one = torch.tensor(1.0)
    far = rows_apart(h), rows_apart(dg)
    found, expected = (ops.bias_gelu_fp8(x, bias, "erf", scale) for x in (far[0], h))
    assert torch.equal(found.float(), expected.float())
    found, expected = (
        ops.bias_gelu_fp8_backward(d, x, bias, "erf", scale, one, one)
        for x, d in (far, (h, dg))
    )  # fmt: skip
    assert torch.equal(found.dh.rows.float(), expected.dh.rows.float())


def test_bad_use():
    h, bias, scale = torch.ones(2, 16), torch.ones(16), torch.tensor(1.0)
    with pytest.raises(ValueError, match="h has dtype torch.float64"):
        ops.bias_gelu_fp8(h.double(), bias, "erf", scale)
    with pytest.raises(ValueError, match="kind is 'relu', expected one of erf, tanh, quick"):
        ops.bias_gelu_fp8(h, bias, "relu", scale)
    with pytest.raises(ValueError, match="row_norm has shape"):
        ops.bias_gelu_fp8_backward(h, h, bias, "erf", scale, torch.ones(2), scale)


def test_opcheck(kernels):
    h, bias, scale, one = (
        torch.randn(5, 16),
        torch.randn(16),
        torch.tensor(0.125),
        torch.tensor(1.0),
    )
    opcheck(torch.ops.eva_fast.bias_gelu_fp8.default, (h, bias, "erf", scale))
    op = torch.ops.eva_fast.bias_gelu_fp8_backward.default
    opcheck(op, (torch.randn(5, 16), h, bias, "erf", scale, one, one))
