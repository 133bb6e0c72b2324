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


def plain(patches, kept, cls_token, pos_embed, patch_bias):
    """As MAE's code writes it: positions of all patches, then those that were kept."""
    dtype = patches.dtype
    if patch_bias is not None:
        patches = patches + patch_bias.to(dtype)
    positions = pos_embed.to(dtype)
    rows = positions[1:].expand(len(patches), -1, -1)
    rows = rows.gather(1, kept.long()[:, :, None].expand(-1, -1, patches.shape[2]))
    cls_row = cls_token.to(dtype) + positions[0]
    return torch.cat((cls_row.expand(len(patches), 1, -1), patches + rows), 1)


def arguments(batch, count, kept, width, dtype=torch.float32, bias=True, parameters=None):
    parameters = parameters or dtype
    return (
        leaf(batch, kept, width, dtype=dtype),
        masks(batch, count, kept),
        leaf(width, dtype=parameters),
        leaf(count + 1, width, dtype=parameters).detach(),
        leaf(width, dtype=parameters) if bias else None,
    )


CASES = {
    "4 of 16": (2, 16, 4, 60, True),
    "one of two": (1, 2, 1, 88, True),
    "more images than a tile": (11, 9, 2, 88, True),
    "all kept": (2, 5, 5, 176, True),
    "no bias, wider than a block": (2, 7, 3, 1408, False),
}


@pytest.mark.parametrize(("case", "dtype"), with_dtypes(CASES))
def test_against_float64(kernels, case, dtype):
    *sizes, bias = CASES[case]
    check_against_float64(ops.embed_kept, plain, lambda: arguments(*sizes, dtype, bias))


def test_float32_parameters_with_16_bit_patches(kernels):
    def make():
        return arguments(2, 9, 4, 60, torch.bfloat16, parameters=torch.float32)

    check_against_float64(ops.embed_kept, plain, make)


def test_any_order_and_strided_patches(kernels):
    def make():
        patches, kept, *rest = arguments(2, 9, 4, 60)
        return rows_apart(patches), kept.flip(1), *rest

    check_against_float64(ops.embed_kept, plain, make)


def test_no_images(kernels):
    inputs = arguments(0, 5, 2, 60)
    out = ops.embed_kept(*inputs)
    assert out.shape == (0, 3, 60)
    leaves = [t for t in inputs if t.requires_grad]
    for gradient, tensor in zip(torch.autograd.grad(out, leaves, out), leaves, strict=True):
        assert gradient.shape == tensor.shape and not gradient.any()


def test_reference_in_float64():
    inputs = [t.double() if t.is_floating_point() else t for t in arguments(2, 9, 4, 60)]
    expected = plain(*inputs)
    torch.testing.assert_close(ops.embed_kept.reference(*inputs), expected, rtol=0, atol=1e-14)


def test_opcheck(kernels):
    opcheck(torch.ops.eva_fast.embed_kept.default, arguments(2, 5, 2, 20))


def test_compiled():
    check_compiled(ops.embed_kept, arguments(2, 5, 2, 20))


BAD = {
    "patches has shape": {"patches": lambda t: t[0]},
    "kept has dtype": {"kept": lambda t: t.long()},
    "kept has shape": {"kept": lambda t: t[:, :1]},
    "cls_token has shape": {"cls_token": lambda t: t[None]},
    "pos_embed has shape": {"pos_embed": lambda t: t[:, 1:]},
    "pos_embed requires grad": {"pos_embed": lambda t: t.clone().requires_grad_()},
    "patch_bias has dtype": {"patch_bias": lambda t: t.bfloat16()},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    names = ("patches", "kept", "cls_token", "pos_embed", "patch_bias")
    values = dict(zip(names, arguments(2, 5, 2, 20), strict=True))
    for name, change in BAD[message].items():
        values[name] = change(values[name])
    with pytest.raises(ValueError, match=f"embed_kept: .*{message}"):
        ops.embed_kept(**values)
