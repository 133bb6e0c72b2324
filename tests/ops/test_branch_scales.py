"""The scales hold whatever the input is: the largest value comes close for the input that is made for
it, and no input goes beyond."""

import pytest
import torch

from eva_fast import ops
from tests.ops.helpers import opcheck


def given(width=48, outputs=80, dtype=torch.float32):
    weight, bias = torch.randn(width).to(dtype), torch.randn(width).to(dtype)
    linear, linear_bias = torch.randn(outputs, width) * 0.1, torch.randn(outputs).to(dtype)
    return weight, bias, linear.norm(dim=1).max(), linear_bias, linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("width", [16, 48, 1408])
def test_against_float64(kernels, width, dtype):
    weight, bias, norm, linear_bias, _ = given(width, 1100, dtype)
    w, b, n, c = (t.double() for t in (weight, bias, norm, linear_bias))
    y = (width**0.5 * w.abs() + b.abs()).max()
    for biased in (True, False):
        h = (width**0.5 * w.abs().max() + b.norm()) * n * 1.08 + (c.abs().max() if biased else 0)
        found = ops.branch_scales(weight, bias, norm, linear_bias if biased else None)
        for scale, bound in zip(found, (y, h), strict=True):
            assert scale.dtype == torch.float32 and scale.shape == ()
            assert scale.log2().item() % 1 == 0
            assert 224 < bound / scale.double() <= 448


def test_nothing_goes_beyond(kernels):
    """Inputs whose norm points along a row of the Linear, the worst there are."""
    weight, bias, norm, linear_bias, linear = given()
    y_scale, h_scale = ops.branch_scales(weight, bias, norm, linear_bias)
    x = torch.cat((linear * weight, -linear * weight, torch.eye(48)))
    y = torch.nn.functional.layer_norm(x, (48,), weight, bias)
    h = y @ linear.t() + linear_bias
    for values, scale in ((y, y_scale), (h, h_scale)):
        assert 448 / 16 < values.abs().max() / scale < 448


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("which", range(4))
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_what_is_not_finite_shows(kernels, which, bad):
    arguments = list(given()[:4])
    arguments[which] = arguments[which].clone()
    arguments[which].view(-1)[-1] = bad
    y_scale, h_scale = ops.branch_scales(*arguments)
    assert h_scale.isnan() and y_scale.isnan() == (which < 2)


def test_bad_use():
    weight, bias, norm, linear_bias, _ = given()
    with pytest.raises(ValueError, match="bias has shape"):
        ops.branch_scales(weight, bias[:3], norm)
    with pytest.raises(ValueError, match="norm has dtype torch.float64"):
        ops.branch_scales(weight, bias, norm.double(), linear_bias)


def test_opcheck(kernels):
    opcheck(torch.ops.eva_fast.branch_scales.default, given()[:4])
