import pytest
import torch

from eva_fast import ops
from tests.ops.helpers import check_compiled, leaf, masks, opcheck, rows_apart, with_dtypes

CASES = {
    "4 of 7": (2, 7, 4, 60),
    "one masked patch of two": (1, 2, 1, 64),
    "all masked": (2, 7, 7, 88),
    "none masked": (2, 7, 0, 60),
    "105 of 256, 1408 wide": (1, 256, 105, 1408),
}


def plain(x, mask):
    flags = torch.zeros(x.shape[0], x.shape[1] - 1, dtype=torch.bool)
    for image, indices in enumerate(mask.tolist()):
        flags[image, indices] = True
    return x[:, 1:][flags]


@pytest.mark.parametrize(("case", "dtype"), with_dtypes(CASES))
def test_moves_rows_unchanged(kernels, case, dtype):
    batch, patches, count, width = CASES[case]
    x, mask = leaf(batch, patches + 1, width, dtype=dtype), masks(batch, patches, count)
    out = ops.masked_gather(x, mask)
    torch.testing.assert_close(out, plain(x, mask), rtol=0, atol=0)
    upstream = torch.randn_like(out)
    (found,) = torch.autograd.grad(out, x, upstream)
    (expected,) = torch.autograd.grad(plain(x, mask), x, upstream)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_class_token_is_index_minus_one(kernels):
    x = leaf(2, 6, 60)
    mask = torch.tensor([[-1, 0, 3], [-1, 2, 4]], dtype=torch.int32)
    rows = (mask.long() + 1)[:, :, None].expand(-1, -1, 60)
    out, expected = ops.masked_gather(x, mask), x.gather(1, rows).flatten(0, 1)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    upstream = torch.randn_like(out)
    (found,) = torch.autograd.grad(out, x, upstream)
    (wanted,) = torch.autograd.grad(expected, x, upstream)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_strided_tokens_and_expanded_gradient(kernels):
    x, mask = rows_apart(leaf(2, 10, 60)), masks(2, 9, 4)
    out = ops.masked_gather(x, mask)
    torch.testing.assert_close(out, plain(x, mask), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.sum() == out.numel() and not gradient[:, 0].any()


def test_no_images(kernels):
    x = leaf(0, 10, 60)
    out = ops.masked_gather(x, torch.empty(0, 4, dtype=torch.int32))
    assert out.shape == (0, 60)
    assert torch.autograd.grad(out, x, out)[0].shape == (0, 10, 60)


def test_reference_in_float64():
    x, mask = torch.randn(2, 10, 60).double(), masks(2, 9, 4)
    assert torch.equal(ops.masked_gather.reference(x, mask), plain(x, mask))


def test_opcheck(kernels):
    mask = masks(2, 5, 3)
    opcheck(torch.ops.eva_fast.masked_gather.default, (leaf(2, 6, 20), mask))
    backward = torch.ops.eva_fast.masked_gather_backward.default
    opcheck(backward, (torch.randn(6, 20), mask, 6))


def test_compiled():
    check_compiled(ops.masked_gather, (leaf(2, 6, 20), masks(2, 5, 3)))


BAD = {
    "x has shape": lambda x, m: (x[0], m),
    "x has dtype": lambda x, m: (x.long(), m),
    "x has strides": lambda x, m: (x.transpose(1, 2), m),
    "mask has shape": lambda x, m: (x, m[:1]),
    "mask has dtype torch.int64, expected int32": lambda x, m: (x, m.long()),
    "mask is on device": lambda x, m: (x, m.to("meta")),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    with pytest.raises(ValueError, match=f"masked_gather: .*{message}"):
        ops.masked_gather(*BAD[message](torch.randn(2, 6, 20), masks(2, 5, 3)))
