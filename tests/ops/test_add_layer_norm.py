import pytest
import torch
import torch.nn.functional as F

from eva_fast import ops
from tests.ops.helpers import (
    SHORT,
    Accuracy,
    check_against_float64,
    check_compiled,
    double,
    leaf,
    opcheck,
    outputs_and_gradients,
    rows_apart,
    with_dtypes,
)

EPS = 1e-6


def plain(x, branch, branch_bias, scale, weight, bias, eps):
    """As a model writes it, in stock PyTorch."""
    if branch is not None:
        if branch_bias is not None:
            branch = branch + branch_bias
        if scale is not None:
            branch = branch * scale[:, None, None].to(branch.dtype)
        x = x + branch
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    return x, F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def arguments(batch, tokens, width, dtype=torch.float32, branch=True, bias=True, scale=True):
    return (
        leaf(batch, tokens, width, dtype=dtype),
        leaf(batch, tokens, width, dtype=dtype) if branch else None,
        leaf(width, dtype=dtype) if branch and bias else None,
        torch.tensor([0.0, 1.25, *[1.25] * batch][:batch]) if branch and scale else None,
        leaf(width, dtype=dtype),
        leaf(width, dtype=dtype),
        EPS,
    )


CASES = {
    "drop-path and bias, 7 rows of 60": (1, 7, 60, True, True, True),
    "one row of 1408": (1, 1, 1408, True, True, False),
    "no scale, 88": (2, 9, 88, True, True, False),
    "no branch bias, 176": (3, 3, 176, True, False, True),
    "no branch": (2, 5, 64, False, False, False),
}


@pytest.mark.parametrize(("case", "dtype"), with_dtypes(CASES))
def test_against_float64(kernels, case, dtype):
    batch, tokens, width, branch, bias, scale = CASES[case]

    def make():
        return arguments(batch, tokens, width, dtype, branch, bias, scale)

    if not branch:  # x' is x: one output, whose gradient is that of the norm alone
        op, stock = (lambda *a, f=f: f(*a)[1] for f in (ops.add_layer_norm, plain))
        check_against_float64(op, stock, make)
    else:
        check_against_float64(ops.add_layer_norm, plain, make, outputs=2)


def test_all_tokens_of_an_image_at_vit_g_width(kernels):
    def make():
        return arguments(1, 257, 1408)

    check_against_float64(ops.add_layer_norm, plain, make, outputs=2, draws=1)


def test_float32_weights_with_16_bit_rows(kernels):
    def make():
        return (*arguments(2, 5, 60, torch.bfloat16)[:4], leaf(60), leaf(60), EPS)

    check_against_float64(ops.add_layer_norm, plain, make, outputs=2)


def test_rows_far_from_zero(kernels):
    """The variance is that of centred rows: E[x^2] - E[x]^2 would lose all digits here."""

    def make():
        x, *rest = arguments(1, 7, 88, scale=False, bias=False)
        return (x.detach() + 1000).requires_grad_(), *rest

    check_against_float64(ops.add_layer_norm, plain, make, outputs=2)


def test_strided_rows(kernels):
    def make():
        x, branch, *rest = arguments(2, 5, 60)
        return rows_apart(x), rows_apart(branch), *rest

    check_against_float64(ops.add_layer_norm, plain, make, outputs=2)
    sliced = leaf(3, 6, 60)[:, 1:].detach()  # no single row stride describes this one
    norm = make()[4:]
    got = ops.add_layer_norm(sliced, None, None, None, *norm)
    want = ops.add_layer_norm(sliced.contiguous(), None, None, None, *norm)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=SHORT.get)
def test_backward_rebuilds_y_and_sums_the_branch_bias(kernels, dtype):
    """What the branch functions call: residual gradient in, y and column sums out."""
    accuracy = Accuracy()
    for _ in range(4):
        inputs = arguments(2, 5, 176, dtype)
        _, _, _, scale, weight, bias, _ = inputs
        with torch.no_grad():
            total, y, mean, rstd = ops.add_layer_norm(*inputs)
            dy, dresidual = torch.randn_like(y), torch.randn_like(y)
            dx, dbranch, again, *sums = ops.add_layer_norm_backward(
                dy, dresidual, total, mean, rstd, weight, bias, scale, True, True
            )
        torch.testing.assert_close(again, y, rtol=0, atol=torch.finfo(dtype).eps * 4)
        upstream = (dresidual, dy)
        usual = outputs_and_gradients(plain, inputs, upstream)[2:]
        exact = outputs_and_gradients(plain, [double(i) for i in inputs], upstream)[2:]
        dweight, dbias, dbranch_bias = sums
        found = (dx, dbranch, dbranch_bias, dweight, dbias)
        for i, (a, p, e) in enumerate(zip(found, usual, exact, strict=True)):
            accuracy.add(f"gradient {i}", a, p, e)
    accuracy.check()


def test_backward_without_what_nobody_wants(kernels):
    x, _, _, _, weight, bias, eps = arguments(1, 7, 60)
    with torch.no_grad():
        _, y, mean, rstd = ops.add_layer_norm(x, None, None, None, weight, bias, eps)
        dx, dbranch, again, _, _, dbranch_bias = ops.add_layer_norm_backward(
            torch.randn_like(y), None, x, mean, rstd, weight, bias
        )
    assert dbranch is dx and again.numel() == 0 and dbranch_bias.numel() == 0


def test_statistics(kernels):
    x, _, _, _, weight, bias, eps = arguments(2, 5, 88)
    _, _, mean, rstd = ops.add_layer_norm(x, None, None, None, weight, bias, eps)
    wide = x.detach().double().flatten(0, 1)
    torch.testing.assert_close(mean.double(), wide.mean(-1), rtol=1e-5, atol=1e-6)
    expected = (wide.var(-1, correction=0) + eps).rsqrt()
    torch.testing.assert_close(rstd.double(), expected, rtol=1e-5, atol=0)
    assert not mean.requires_grad and not rstd.requires_grad


def test_no_rows(kernels):
    x, branch, branch_bias, _, weight, bias, eps = arguments(0, 5, 60, scale=False)
    total, y, mean, rstd = ops.add_layer_norm(x, branch, branch_bias, None, weight, bias, eps)
    assert total.shape == y.shape == (0, 5, 60) and mean.shape == rstd.shape == (0,)
    leaves = (x, branch, branch_bias, weight, bias)
    for gradient, tensor in zip(torch.autograd.grad((total, y), leaves, (total, y)), leaves):
        assert gradient.shape == tensor.shape and not gradient.any()


def test_gradients_of_a_plain_sum(kernels):
    """Expanded gradients (stride 0) reach the backward as they come."""
    inputs = arguments(2, 3, 60)
    total, y, *_ = ops.add_layer_norm(*inputs)
    leaves = [t for t in inputs if torch.is_tensor(t) and t.requires_grad]
    gradients = torch.autograd.grad((total.sum() + y.sum()), leaves)
    assert all(g.isfinite().all() for g in gradients)


def test_reference_in_float64():
    inputs = [t.double() if torch.is_tensor(t) else t for t in arguments(2, 5, 60)]
    for a, b in zip(ops.add_layer_norm.reference(*inputs)[:2], plain(*inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_opcheck(kernels):
    inputs = arguments(2, 3, 20)
    opcheck(torch.ops.eva_fast.add_layer_norm.default, inputs)
    bare = (inputs[0], None, None, None, *inputs[4:])
    opcheck(torch.ops.eva_fast.add_layer_norm.default, bare)
    x, _, _, scale, weight, bias, _ = (t.detach() if torch.is_tensor(t) else t for t in inputs)
    statistics = torch.randn(2, 6)
    backward = torch.ops.eva_fast.add_layer_norm_backward.default
    for residual, factor, wanted in ((x, scale, True), (None, None, False)):
        arguments_ = (x, residual, x, *statistics, weight, bias, factor, wanted, wanted)
        opcheck(backward, arguments_)


def test_compiled():
    check_compiled(ops.add_layer_norm, arguments(2, 3, 20), outputs=2)


BAD = {
    "weight has shape": lambda a: a.update(weight=a["weight"][:-1]),
    "branch has shape": lambda a: a.update(branch=a["branch"][:, :-1]),
    "branch has dtype": lambda a: a.update(branch=a["branch"].half()),
    "weight has dtype": lambda a: a.update(weight=a["weight"].half(), bias=a["bias"].half()),
    "x has dtype": lambda a: a.update(x=a["x"].int()),
    "branch is on device": lambda a: a.update(branch=a["branch"].to("meta")),
    "x has strides": lambda a: a.update(x=a["x"].transpose(1, 2).contiguous().transpose(1, 2)),
    "scale has shape": lambda a: a.update(scale=torch.ones(4)),
    "scale requires grad": lambda a: a.update(scale=torch.ones(2, requires_grad=True)),
    "need a branch": lambda a: a.update(branch=None),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    names = ("x", "branch", "branch_bias", "scale", "weight", "bias", "eps")
    values = dict(zip(names, arguments(2, 3, 20), strict=True))
    BAD[message](values)
    with pytest.raises(ValueError, match=f"add_layer_norm: .*{message}"):
        ops.add_layer_norm(**values)
