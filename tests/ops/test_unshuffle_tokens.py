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


def plain(rows, kept, mask_token, pos_embed):
    """As MAE's code writes it: mask tokens appended, the list put back in order, positions added."""
    batch, count, width = kept.shape[0], kept.shape[1], rows.shape[2]
    dtype, patches = rows.dtype, pos_embed.shape[0] - 1
    flags = torch.ones(batch, patches).scatter(1, kept.long(), 0)
    # kept first, each in its own place of the list, then the rest
    order = torch.cat((kept.long(), flags.nonzero()[:, 1].view(batch, patches - count)), 1)
    restore = order.argsort(1)[:, :, None].expand(-1, -1, width)
    dropped = mask_token.to(dtype).expand(batch, patches - count, width)
    tokens = torch.cat((rows[:, 1:], dropped), 1).gather(1, restore)
    return torch.cat((rows[:, :1], tokens), 1) + pos_embed.to(dtype)


def arguments(batch, patches, kept, width, dtype=torch.float32, parameters=None):
    parameters = parameters or dtype
    return (
        leaf(batch, kept + 1, width, dtype=dtype),
        masks(batch, patches, kept),
        leaf(width, dtype=parameters),
        leaf(patches + 1, width, dtype=parameters).detach(),
    )


CASES = {
    "4 of 16": (3, 16, 4, 60),
    "one of two": (1, 2, 1, 88),
    "more images than a tile": (11, 9, 2, 88),
    "all kept": (2, 5, 5, 176),
    "wider than a block": (2, 7, 3, 1408),
}


@pytest.mark.parametrize(("case", "dtype"), with_dtypes(CASES))
def test_against_float64(kernels, case, dtype):
    check_against_float64(ops.unshuffle_tokens, plain, lambda: arguments(*CASES[case], dtype))


def test_float32_parameters_with_16_bit_rows(kernels):
    def make():
        return arguments(2, 9, 4, 60, torch.bfloat16, parameters=torch.float32)

    check_against_float64(ops.unshuffle_tokens, plain, make)


def test_any_order_and_strided_rows(kernels):
    def make():
        rows, kept, *rest = arguments(2, 9, 4, 60)
        return rows_apart(rows), kept.flip(1), *rest

    check_against_float64(ops.unshuffle_tokens, plain, make)


def test_expanded_gradient(kernels):
    rows, *rest = arguments(2, 9, 4, 60)
    mask_token = rest[1]
    found = torch.autograd.grad(ops.unshuffle_tokens(rows, *rest).sum(), (rows, mask_token))
    assert (found[0] == 1).all() and (found[1] == 2 * 5).all()


def test_no_images(kernels):
    inputs = arguments(0, 5, 2, 60)
    out = ops.unshuffle_tokens(*inputs)
    assert out.shape == (0, 6, 60)
    leaves = [t for t in inputs if t.requires_grad]
    for gradient, tensor in zip(torch.autograd.grad(out, leaves, out), leaves, strict=True):
        assert gradient.shape == tensor.shape and not gradient.any()


def test_reference_in_float64():
    inputs = [t.double() if t.is_floating_point() else t for t in arguments(2, 9, 4, 60)]
    expected = plain(*inputs)
    found = ops.unshuffle_tokens.reference(*inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_opcheck(kernels):
    inputs = arguments(2, 5, 2, 20)
    opcheck(torch.ops.eva_fast.unshuffle_tokens.default, inputs)
    backward = torch.ops.eva_fast.unshuffle_tokens_backward.default
    opcheck(backward, (torch.randn(2, 6, 20), inputs[1], torch.float32))


def test_compiled():
    check_compiled(ops.unshuffle_tokens, arguments(2, 5, 2, 20))


BAD = {
    "rows has shape": {"rows": lambda t: t[0]},
    "kept has dtype": {"kept": lambda t: t.long()},
    "kept has shape": {"kept": lambda t: t[:, :1]},
    "mask_token has shape": {"mask_token": lambda t: t[None]},
    "pos_embed has shape": {"pos_embed": lambda t: t[:, 1:]},
    "pos_embed requires grad": {"pos_embed": lambda t: t.clone().requires_grad_()},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    names = ("rows", "kept", "mask_token", "pos_embed")
    values = dict(zip(names, arguments(2, 5, 2, 20), strict=True))
    for name, change in BAD[message].items():
        values[name] = change(values[name])
    with pytest.raises(ValueError, match=f"unshuffle_tokens: .*{message}"):
        ops.unshuffle_tokens(**values)
