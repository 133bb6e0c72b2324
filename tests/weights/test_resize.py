"""Positions and patch convolutions for other sizes, against timm and against their own meaning."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from eva_fast.errors import UsageError
from eva_fast.layers.rel_pos import table_rows
from eva_fast.weights import read, resize_patches, resize_positions
from eva_fast.weights.resize_bias import _places, resize_relative_bias

timm_layers = pytest.importorskip("timm.layers")


def test_resized_positions_keep_a_ramp_and_the_class_token():
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    table = torch.cat([torch.tensor([[9.0, -9.0]]), torch.stack([rows, columns], -1).view(64, 2)])
    out = resize_positions(table, (8, 8), (16, 16))
    assert out[0].tolist() == [9, -9]
    inner = out[1:].view(16, 16, 2)[4:12, 4:12]
    expected = (torch.arange(4.0, 12) + 0.5) / 2 - 0.5
    torch.testing.assert_close(inner[:, 0, 0], expected)
    torch.testing.assert_close(inner[0, :, 1], expected)
    assert resize_positions(table, (8, 8), (8, 8)) is table


@pytest.mark.parametrize("old, new", [((4, 4), (7, 7)), ((8, 8), (5, 5)), ((3, 5), (6, 4))])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_positions_are_timms(old, new, prefix):
    table = torch.randn(1, prefix + old[0] * old[1], 6)
    expected = timm_layers.resample_abs_pos_embed(
        table, list(new), list(old), num_prefix_tokens=prefix
    )
    torch.testing.assert_close(resize_positions(table, old, new), expected)
    assert torch.equal(resize_positions(table, old, new)[0], resize_positions(table[0], old, new))


@pytest.mark.parametrize("old, new", [(14, 16), (16, 14), (16, 32), (8, (6, 10))])
def test_patches_are_timms(old, new):
    weight = torch.randn(5, 3, old, old)
    size = (new, new) if isinstance(new, int) else new
    expected = timm_layers.resample_patch_embed(weight, list(size))
    out = resize_patches(weight, new)
    assert out.shape == (5, 3, *size) and out.dtype == weight.dtype
    torch.testing.assert_close(out, expected, atol=2e-5 * expected.abs().max().item(), rtol=1e-4)


def test_enlarged_patches_give_what_the_small_ones_gave():
    """What the pseudo-inverse is for: a patch that is enlarged with its kernel has the same feature."""
    weight, patch = torch.randn(5, 3, 14, 14).double(), torch.randn(2, 3, 14, 14).double()
    large = F.interpolate(patch, (16, 16), mode="bicubic", align_corners=False, antialias=True)
    torch.testing.assert_close(
        F.conv2d(large, resize_patches(weight, 16)), F.conv2d(patch, weight), atol=1e-10, rtol=1e-10
    )


def test_the_official_codes_numbers():
    """The file holds tables and kernels before and after the official code resized them."""
    given = read(Path(__file__).with_name("official_resize.safetensors"))
    for old, new, sides in (
        ("pos_embed", "resized.pos_embed", (4, 6)),
        ("psz14.pos_embed", "psz16.pos_embed", (16, 14)),
    ):
        grids = [(side, side) for side in sides]
        found = resize_positions(given[old], *grids, resize="official")
        torch.testing.assert_close(found, given[new], atol=1e-6, rtol=1e-6)
        assert not torch.allclose(resize_positions(given[old], *grids), found, atol=1e-3)
    kernel = resize_patches(given["psz14.patch_embed.proj.weight"], 16, resize="official")
    torch.testing.assert_close(kernel, given["psz16.patch_embed.proj.weight"], atol=1e-6, rtol=1e-6)


def test_an_unknown_way_is_refused():
    for resized in (
        lambda: resize_patches(torch.zeros(1, 3, 2, 2), 4, resize="nearest"),
        lambda: resize_positions(torch.zeros(1, 5, 2), (2, 2), (3, 3), resize="nearest"),
    ):
        with pytest.raises(UsageError, match="one of timm, official, not 'nearest'"):
            resized()


def test_nothing_to_do():
    weight = torch.randn(5, 3, 14, 14)
    assert resize_patches(weight, 14) is weight and resize_patches(weight, (14, 14)) is weight


@pytest.mark.parametrize("old, new", [((4, 4), (7, 7)), ((14, 14), (24, 24)), ((9, 9), (5, 5))])
def test_tables_of_relative_positions_are_timms(old, new):
    table = torch.randn(table_rows(old), 3)
    shape = (table_rows(new), 3)
    expected = timm_layers.resize_rel_pos_bias_table(table, new, shape)
    found = resize_relative_bias(table, old, new)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert torch.equal(found[-3:], table[-3:])
    assert resize_relative_bias(table, old, old) is table


def test_the_official_codes_spline_goes_through_cubics():
    """A table that is a cubic of the places in each direction stays one: the spline's ends have no
    condition of their own (not-a-knot), as those of the official code's `interp2d` have none."""
    pytest.importorskip("scipy")
    old, new = (5, 4), (9, 6)
    y, x = (_places(a, b) for a, b in zip(old, new))
    assert y[-1] == pytest.approx(8, abs=1e-4) and y[4] == 0 and y[5] == 1

    def cubic(y, x):
        values = (y**3 - 2 * y)[:, None] * (x**3 / 10 + x**2 - 1)
        return torch.cat((values.reshape(-1, 1), torch.tensor([[1.0], [2.0], [3.0]]).double()))

    there = (torch.arange(1 - n, n).double().clamp(-p[-1], p[-1]) for n, p in zip(new, (y, x)))
    wanted = cubic(*there)
    found = resize_relative_bias(cubic(y, x), old, new, "official")
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)


def test_a_table_of_another_grid():
    with pytest.raises(UsageError, match="has 52 rows, expected 28 for"):
        resize_relative_bias(torch.zeros(52, 2), (3, 3), (4, 4))
