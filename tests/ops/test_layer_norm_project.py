import pytest
import torch
import torch.nn.functional as F

from eva_fast.ops.layer_norm_project import layer_norm_project
from tests.ops.helpers import (
    DTYPES,
    SHORT,
    check_against_float64,
    check_compiled,
    leaf,
    masks,
    rows_apart,
)

EPS = 1e-6


def plain(x, mask, ln_w, ln_b, weight, bias, eps):
    """As a model writes it, in stock PyTorch."""
    if mask is not None:
        x = torch.cat([image[1 + index.long()] for image, index in zip(x, mask)])
    y = F.layer_norm(x, x.shape[-1:], ln_w.to(x.dtype), ln_b.to(x.dtype), eps)
    return F.linear(y, weight.to(x.dtype), bias.to(x.dtype))


def parameters(width, predict, dtype):
    return (
        leaf(width, dtype=dtype),
        leaf(width, dtype=dtype),
        leaf(predict, width, dtype=dtype, scale=width**-0.5),
        leaf(predict, dtype=dtype),
        EPS,
    )


def all_rows(rows, width, predict, dtype=torch.float32):
    return leaf(rows, width, dtype=dtype), None, *parameters(width, predict, dtype)


def masked_rows(batch, patches, count, width, predict, dtype=torch.float32):
    x = leaf(batch, patches + 1, width, dtype=dtype)
    return x, masks(batch, patches, count), *parameters(width, predict, dtype)


# inputs and draws: few values need many draws, or the comparison is one of luck
CASES = {
    "one row of 60, 20 predicted": (lambda d: all_rows(1, 60, 20, d), 32),
    "7 rows of 88, 768": (lambda d: all_rows(7, 88, 768, d), 2),
    "257 rows of 176, 20": (lambda d: all_rows(257, 176, 20, d), 1),
    "masked, 60 to 1024": (lambda d: masked_rows(3, 16, 5, 60, 1024, d), 2),
    "masked, ViT-g's width": (lambda d: masked_rows(1, 16, 5, 1408, 100, d), 1),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
@pytest.mark.parametrize("case", CASES)
def test_against_float64(kernels, case, dtype):
    make, draws = CASES[case]
    check_against_float64(layer_norm_project, plain, lambda: make(dtype), draws=draws)


def test_rows_far_from_zero(kernels):
    """The variance is that of centred rows."""

    def inputs():
        x, *rest = all_rows(7, 88, 20)
        return (x.detach() + 1000).requires_grad_(), *rest

    check_against_float64(layer_norm_project, plain, inputs)


def test_float32_parameters_with_16_bit_rows(kernels):
    def inputs():
        x, *rest = masked_rows(2, 9, 4, 60, 20)
        return x.detach().to(torch.bfloat16).requires_grad_(), *rest

    check_against_float64(layer_norm_project, plain, inputs)


@pytest.mark.parametrize("make", [lambda: all_rows(7, 60, 20), lambda: masked_rows(2, 9, 4, 60, 20)],
                         ids=["all", "masked"])  # fmt: skip
def test_strided_rows(kernels, make):
    def inputs():
        x, *rest = make()
        return rows_apart(x), *rest

    check_against_float64(layer_norm_project, plain, inputs)


def test_strided_weight_and_expanded_gradient(kernels):
    x, mask, ln_w, ln_b, weight, bias, eps = all_rows(7, 60, 20)
    out = layer_norm_project(x, mask, ln_w, ln_b, rows_apart(weight), bias, eps)
    torch.testing.assert_close(out, plain(x, mask, ln_w, ln_b, weight, bias, eps))
    (dx,) = torch.autograd.grad(out.sum(), x)
    expected = plain(x, mask, ln_w, ln_b, weight, bias, eps)
    torch.testing.assert_close(dx, torch.autograd.grad(expected.sum(), x)[0])


@pytest.mark.parametrize(
    "inputs", [all_rows(0, 60, 20), masked_rows(2, 9, 0, 60, 20)], ids=["all", "masked"]
)
def test_no_rows(kernels, inputs):
    out = layer_norm_project(*inputs)
    assert out.shape == (0, 20)
    leaves = [t for t in inputs if torch.is_tensor(t) and t.requires_grad]
    for gradient, tensor in zip(torch.autograd.grad(out, leaves, out), leaves, strict=True):
        assert gradient.shape == tensor.shape and not gradient.any()


def test_opcheck(kernels):
    for inputs in (all_rows(5, 20, 12), masked_rows(2, 9, 3, 20, 12)):
        torch.library.opcheck(torch.ops.eva_fast.layer_norm_project.default, inputs)
        *tensors, eps = (t.detach() if torch.is_tensor(t) else t for t in inputs)
        dout = torch.ops.eva_fast.layer_norm_project(*tensors, eps)
        backward = torch.ops.eva_fast.layer_norm_project_backward.default
        torch.library.opcheck(backward, (dout, *tensors, eps))


def test_compiled(kernels):
    check_compiled(layer_norm_project, masked_rows(2, 9, 3, 20, 12))


def test_reference_in_float64():
    inputs = [t.double() if torch.is_tensor(t) and t.is_floating_point() else t
              for t in masked_rows(2, 9, 4, 60, 20)]  # fmt: skip
    torch.testing.assert_close(
        layer_norm_project.reference(*inputs), plain(*inputs), rtol=0, atol=1e-12
    )


BAD = {
    "x has shape": {"x": torch.zeros(2, 5, 20)},
    "x has dtype": {"x": torch.zeros(5, 20, dtype=torch.int32)},
    "x has strides": {"x": torch.zeros(20, 5).t()},
    "mask has dtype": {"x": torch.zeros(2, 5, 20), "mask": torch.zeros(2, 3)},
    "ln_b has shape": {"ln_b": torch.zeros(19)},
    "ln_b has dtype": {"ln_b": torch.zeros(20, dtype=torch.float64)},
    "weight has shape": {"weight": torch.zeros(12, 19)},
    "bias is on device": {"bias": torch.zeros(12, device="meta")},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    names = ("x", "mask", "ln_w", "ln_b", "weight", "bias", "eps")
    values = dict(zip(names, all_rows(5, 20, 12), strict=True)) | BAD[message]
    with pytest.raises(ValueError, match=f"layer_norm_project: .*{message}"):
        layer_norm_project(**values)
