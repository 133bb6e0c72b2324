import pytest
import torch

from eva_fast import ops
from tests.ops.eight_bits import check_columns, check_nearest
from tests.ops.helpers import opcheck, rows_apart

BF16 = torch.bfloat16
CASES = {
    "2 x 5 rows of 48": ((2, 5, 48), True),
    "no branch": ((37, 80), False),
    "2 rows of 1408": ((2, 1408), True),
}


def given(shape, branch, dtype):
    x = torch.randn(shape).to(dtype)
    weight, bias = torch.rand(shape[-1]) + 0.5, torch.randn(shape[-1])
    update = (None, None, None)
    if branch:
        scale = torch.tensor([0.0, 1.25]) if shape[0] % 2 == 0 else None
        update = torch.randn(shape).to(dtype), torch.randn(shape[-1]), scale
    return x, *update, weight, bias, 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_against_float64(kernels, case, dtype):
    arguments = given(*CASES[case], dtype)
    scale = torch.tensor(2.0**-5)
    total, q, mean, rstd = ops.add_layer_norm_fp8(*arguments, scale)
    wanted, _, same_mean, same_rstd = ops.add_layer_norm(*arguments)
    assert q.shape == total.shape
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close((mean, rstd), (same_mean, same_rstd), rtol=1e-6, atol=1e-6)
    weight, bias = arguments[4].double(), arguments[5].double()
    exact = torch.nn.functional.layer_norm(total.double(), weight.shape, weight, bias, 1e-6)
    check_nearest(q, scale, exact)
    rows = q.view(-1, q.shape[-1])
    gradients = ops.add_layer_norm_fp8_backward(
        torch.randn_like(total), None, total, mean, rstd, *arguments[4:6], None, scale
    )
    columns = gradients.y
    check_nearest(columns[:, : len(rows)].t(), scale, exact.view(rows.shape))
    check_columns(columns, columns[:, : len(rows)].t())


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("width", [48, 40, 1408, 1000])
@pytest.mark.parametrize("dropped", [False, True], ids=["all", "drop-path"])
def test_gradients_and_their_largest(kernels, width, dropped, dtype):
    """The gradients are those of `add_layer_norm`; the parts are of what was written, rounding and
    all, whatever lies in a block beyond the row."""
    x, weight, bias = torch.randn(2, 7, width), torch.rand(width) + 0.5, torch.randn(width)
    dy, dresidual = torch.randn(2, 7, width) * 3, torch.randn(2, 7, width) / 8
    dy, dresidual, x = (t.to(dtype) for t in (dy, dresidual, x))
    scale = torch.tensor([1.25, 0.5]) if dropped else None
    total, _, mean, rstd = ops.add_layer_norm(x, None, None, None, weight, bias, 1e-6)
    given = dy, dresidual, total, mean, rstd, weight, bias, scale
    found = ops.add_layer_norm_fp8_backward(*given, torch.tensor(2.0**-5), True)
    dx, dbranch, _, *sums = ops.add_layer_norm_backward(*given, False, True)
    for a, b in zip((found.dx, found.dbranch, *found[3:6]), (dx, dbranch, *sums), strict=True):
        torch.testing.assert_close(a, b)
    assert found.largest.dtype == torch.float32
    assert found.largest.max() == found.dbranch.float().abs().max()


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_shows_in_the_largest(kernels, bad):
    x, dy = torch.randn(6, 48), torch.randn(6, 48)
    dy[4, 3] = bad
    given = torch.ones(6), torch.ones(6), torch.ones(48), torch.ones(48), None
    found = ops.add_layer_norm_fp8_backward(dy, None, x, *given, torch.tensor(1.0))
    assert not found.largest.isfinite().all()


def test_columns_of_several_tiles(kernels):
    """More than one tile of rows, the last one not full, of 96 columns."""
    x, weight, bias = torch.randn(130, 96), torch.rand(96) + 0.5, torch.randn(96)
    mean, rstd, scale = torch.randn(130), torch.rand(130) + 0.5, torch.tensor(2.0**-5)
    columns = ops.add_layer_norm_fp8_backward(x, None, x, mean, rstd, weight, bias, None, scale).y
    x, m, r, w, b = (t.double() for t in (x, mean, rstd, weight, bias))
    q = columns[:, :130].t()
    check_nearest(q, scale, (x - m[:, None]) * r[:, None] * w + b)
    check_columns(columns, q)


def test_beyond_the_scale_it_saturates(kernels):
    arguments = given((4, 32), False, torch.float32)
    scale = torch.tensor(2.0**-10)
    total, q, mean, rstd = ops.add_layer_norm_fp8(*arguments, scale)
    assert q.float().abs().max() == 448
    columns = ops.add_layer_norm_fp8_backward(
        total, None, total, mean, rstd, *arguments[4:6], None, scale
    ).y
    assert torch.equal(columns[:, :4].float(), q.float().t())


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_row_that_is_not_finite_shows(kernels):
    x, *rest = given((4, 32), False, torch.float32)
    x[1, 3] = torch.inf
    _, q, *_ = ops.add_layer_norm_fp8(x, *rest, torch.tensor(0.25))
    assert q[1].float().isnan().all() and not q[[0, 2, 3]].float().isnan().any()


def test_rows_apart(kernels):
    x, branch, *rest = given((6, 48), True, torch.float32)
    found = ops.add_layer_norm_fp8(rows_apart(x), rows_apart(branch), *rest, torch.tensor(0.25))
    expected = ops.add_layer_norm_fp8(x, branch, *rest, torch.tensor(0.25))
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(found, expected, strict=True))


def test_bad_use():
    arguments = given((4, 32), False, torch.float32)
    with pytest.raises(ValueError, match="y_scale has shape"):
        ops.add_layer_norm_fp8(*arguments, torch.ones(4))
    x, weight, bias = arguments[0], *arguments[4:6]
    rest = weight, bias, None, torch.tensor(1.0)
    with pytest.raises(ValueError, match="mean has shape"):
        ops.add_layer_norm_fp8_backward(x, None, x, torch.ones(3), torch.ones(4), *rest)
    with pytest.raises(ValueError, match="dy has shape"):
        ops.add_layer_norm_fp8_backward(x[:2], None, x, torch.ones(4), torch.ones(4), *rest)


def test_opcheck(kernels):
    x, branch, branch_bias, scale, weight, bias, eps = given((4, 48), True, BF16)
    known = torch.tensor(0.25)
    op = torch.ops.eva_fast.add_layer_norm_fp8.default
    opcheck(op, (x, branch, branch_bias, scale, weight, bias, eps, known))
    op = torch.ops.eva_fast.add_layer_norm_fp8_backward.default
    for factor in (None, torch.ones(2)):
        opcheck(
            op, (x, x, x, torch.ones(4), torch.ones(4), weight, bias, factor, known, factor is None)
        )
