import pytest
import torch

from eva_fast import ops
from tests.ops.helpers import (
    check_against_float64,
    check_compiled,
    leaf,
    masks,
    opcheck,
    rows_apart,
    with_dtypes,
)


def plain(patches, mask, mask_token, cls_token, pos_embed, patch_bias):
    """As the official model writes it: w * mask_token + (1 - w) * patches, then CLS, then positions."""
    if patch_bias is not None:
        patches = patches + patch_bias.to(patches.dtype)
    dtype = patches.dtype
    if mask is not None:
        w = torch.zeros(patches.shape[:2]).scatter(1, mask.long(), 1.0)[:, :, None].to(dtype)
        patches = patches * (1 - w) + mask_token.to(dtype) * w
    tokens = torch.cat((cls_token.to(dtype).expand(patches.shape[0], 1, -1), patches), 1)
    return tokens + pos_embed.to(dtype)


def arguments(batch, count, masked, width, dtype=torch.float32, bias=True, parameters=None):
    parameters = parameters or dtype
    return (
        leaf(batch, count, width, dtype=dtype),
        masks(batch, count, masked) if masked is not None else None,
        leaf(width, dtype=parameters),
        leaf(width, dtype=parameters),
        leaf(count + 1, width, dtype=parameters),
        leaf(width, dtype=parameters) if bias else None,
    )


CASES = {
    "4 of 7": (2, 7, 4, 60, True),
    "one patch": (1, 1, 0, 88, True),
    "more images than a tile": (11, 4, 2, 88, True),
    "all masked": (2, 5, 5, 176, True),
    "no bias, wider than a block": (2, 3, 1, 1408, False),
}


@pytest.mark.parametrize(("case", "dtype"), with_dtypes(CASES))
def test_against_float64(kernels, case, dtype):
    *sizes, bias = CASES[case]
    check_against_float64(ops.embed_tokens, plain, lambda: arguments(*sizes, dtype, bias))


def test_without_a_mask_its_token_gets_no_gradient(kernels):
    patches, _, mask_token, cls_token, pos_embed, bias = arguments(2, 5, None, 60)
    out = ops.embed_tokens(patches, None, mask_token, cls_token, pos_embed, bias)
    expected = plain(patches, None, mask_token, cls_token, pos_embed, bias)
    torch.testing.assert_close(out, expected)
    leaves = (patches, cls_token, pos_embed, bias)
    upstream = torch.randn_like(out)
    (zero,) = torch.autograd.grad(out, mask_token, upstream, retain_graph=True)
    assert not zero.any()
    found = torch.autograd.grad(out, leaves, upstream)
    for a, b in zip(found, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_float32_parameters_with_16_bit_patches(kernels):
    def make():
        return arguments(2, 9, 4, 60, torch.bfloat16, parameters=torch.float32)

    check_against_float64(ops.embed_tokens, plain, make)


def test_strided_patches_and_expanded_gradient(kernels):
    patches, *rest = arguments(2, 9, 4, 60)
    check_against_float64(ops.embed_tokens, plain, lambda: (rows_apart(leaf(2, 9, 60)), *rest))
    (gradient,) = torch.autograd.grad(ops.embed_tokens(patches, *rest).sum(), patches)
    assert gradient.sum() == 2 * 5 * 60


def test_no_images(kernels):
    inputs = arguments(0, 5, 2, 60)
    out = ops.embed_tokens(*inputs)
    assert out.shape == (0, 6, 60)
    leaves = [t for t in inputs if t.requires_grad]
    for gradient, tensor in zip(torch.autograd.grad(out, leaves, out), leaves, strict=True):
        assert gradient.shape == tensor.shape and not gradient.any()


def test_reference_in_float64():
    inputs = [t.double() if t.is_floating_point() else t for t in arguments(2, 9, 4, 60)]
    expected = plain(*inputs)
    torch.testing.assert_close(ops.embed_tokens.reference(*inputs), expected, rtol=0, atol=1e-14)


def test_opcheck(kernels):
    inputs = arguments(2, 5, 2, 20)
    opcheck(torch.ops.eva_fast.embed_tokens.default, inputs)
    backward = torch.ops.eva_fast.embed_tokens_backward.default
    opcheck(backward, (torch.randn(2, 6, 20), inputs[1], torch.float32, True))
    opcheck(backward, (torch.randn(2, 6, 20).half(), None, torch.float16, False))


def test_compiled():
    check_compiled(ops.embed_tokens, arguments(2, 5, 2, 20))


BAD = {
    "patches has shape": {"patches": lambda t: t[0]},
    "patches has strides": {"patches": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)},
    "mask has dtype": {"mask": lambda t: t.long()},
    "mask has shape": {"mask": lambda t: t[:1]},
    "mask_token has shape": {"mask_token": lambda t: t[None]},
    "cls_token has dtype": {"cls_token": lambda t: t.bfloat16()},
    "pos_embed has shape": {"pos_embed": lambda t: t[1:]},
    "pos_embed is on device": {"pos_embed": lambda t: t.to("meta")},
    "patch_bias has dtype": {"patch_bias": lambda t: t.bfloat16()},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    names = ("patches", "mask", "mask_token", "cls_token", "pos_embed", "patch_bias")
    values = dict(zip(names, arguments(2, 5, 2, 20), strict=True))
    for name, change in BAD[message].items():
        values[name] = change(values[name])
    with pytest.raises(ValueError, match=f"embed_tokens: .*{message}"):
        ops.embed_tokens(**values)
