import pytest
import torch

from eva_fast import ops
from eva_fast.ops.rotary import Angles, turned
from tests.ops.helpers import (
    check_against_float64,
    check_compiled,
    double,
    leaf,
    opcheck,
    with_dtypes,
)


def plain(packed, sin, cos, halves):
    """Pair by pair, on q and k of the tokens that have a place."""
    first, width = packed.shape[1] - len(sin), packed.shape[-1]
    pairs = [(2 * i, 2 * i + 1) for i in range(width // 2)]
    if halves:
        pairs = [(i, i + width // 2) for i in range(width // 2)]
    x = packed[:, first:, :2]
    columns = [None] * width
    for a, b in pairs:
        sin_a, sin_b, cos_a, cos_b = (t[:, None, None, j] for t in (sin, cos) for j in (a, b))
        columns[a] = x[..., a] * cos_a - x[..., b] * sin_a
        columns[b] = x[..., b] * cos_b + x[..., a] * sin_b
    turned = torch.stack(columns, -1).to(packed.dtype)
    return torch.cat((packed[:, :first], torch.cat((turned, packed[:, first:, 2:]), 2)), 1)


def arguments(batch, tokens, placed, heads, width, halves, dtype=torch.float32):
    """Sines and cosines of angles that differ within a pair too: each value has its own."""
    angles = torch.randn(placed, width)
    return leaf(batch, tokens, 3, heads, width, dtype=dtype), angles.sin(), angles.cos(), halves


CASES = {
    "neighbours": (2, 6, 5, 2, 64, False),
    "halves": (2, 6, 5, 2, 64, True),
    "neighbours, an odd rest of 60": (1, 4, 4, 3, 60, False),
    "halves of 44": (3, 7, 4, 1, 88, True),
    "two values a head": (1, 3, 2, 5, 2, False),
}


@pytest.mark.parametrize(("case", "dtype"), with_dtypes(CASES))
def test_against_float64(kernels, case, dtype):
    check_against_float64(ops.rotary, plain, lambda: arguments(*CASES[case], dtype))


@pytest.mark.parametrize("halves", [False, True])
def test_timms(kernels, halves):
    positions = pytest.importorskip("timm.layers.pos_embed_sincos", reason="timm is not installed")
    packed, sin, cos, _ = arguments(2, 6, 5, 2, 64, halves)
    expected = packed.detach().clone()
    x = expected[:, 1:, :2].transpose(1, 3)  # tokens and channels last, as there
    x.copy_(positions.apply_rot_embed(x, sin, cos, half=halves))
    torch.testing.assert_close(ops.rotary(packed, sin, cos, halves), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("halves", [False, True])
def test_there_and_back(kernels, halves):
    """The transpose of a rotation is the rotation by the opposite angle."""
    packed, *_ = arguments(2, 9, 8, 2, 16, halves)
    angle = torch.randn(8, 8)
    pair = torch.cat((angle, angle), 1) if halves else angle.repeat_interleave(2, 1)
    angles = Angles(pair.sin(), pair.cos(), halves)
    with torch.no_grad():
        there = turned(packed.detach().clone(), angles)
        assert not torch.allclose(there[:, 1:, :2], packed[:, 1:, :2], atol=0.1)
        back = turned(there, angles, backward=True)
    assert back.data_ptr() == there.data_ptr()  # in place
    torch.testing.assert_close(back, packed.detach(), rtol=0, atol=1e-6)


def test_tables_side_by_side(kernels):
    """timm's one table of sines and cosines: rows with gaps."""
    packed, sin, cos, halves = arguments(2, 6, 5, 2, 32, False)
    sides = torch.cat((sin, cos), 1).chunk(2, 1)
    found = ops.rotary(packed, *sides, halves)
    torch.testing.assert_close(found, ops.rotary(packed, sin, cos, halves), rtol=0, atol=0)


def test_nothing_to_turn(kernels):
    packed, sin, cos, _ = arguments(2, 6, 0, 2, 32, False)
    assert torch.equal(ops.rotary(packed, sin, cos), packed)
    empty, sin, cos, _ = arguments(0, 6, 5, 2, 32, False)
    assert ops.rotary(empty, sin, cos).shape == empty.shape


@pytest.mark.parametrize("halves", [False, True])
def test_reference_in_float64(halves):
    packed, sin, cos, _ = map(double, arguments(2, 6, 5, 2, 32, halves))
    expected = plain(packed, sin, cos, halves)
    for op in (ops.rotary.reference, ops.rotary):
        found = op(packed, sin.detach(), cos.detach(), halves)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_opcheck(kernels):
    for backward in (False, True):
        given = (*arguments(2, 4, 3, 2, 8, False), backward)
        opcheck(torch.ops.eva_fast.rotary.default, given)


def test_compiled():
    check_compiled(ops.rotary, arguments(2, 4, 3, 2, 8, True))


BAD = {
    "packed has shape": lambda p, s, c: (p[0], s, c),
    "heads are 7 wide": lambda p, s, c: (p[..., :7].contiguous(), s, c),
    "sin has shape": lambda p, s, c: (p, s[:, :4], c),
    "cos has shape": lambda p, s, c: (p, s, c[1:]),
    "cos has dtype": lambda p, s, c: (p, s, c.double()),
    "cos requires grad": lambda p, s, c: (p, s, c.requires_grad_()),
    "sin has 5 rows": lambda p, s, c: (p[:, :4], s, c),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    packed, sin, cos, _ = arguments(2, 6, 5, 2, 8, False)
    with pytest.raises(ValueError, match=f"rotary: .*{message}"):
        ops.rotary(*BAD[message](packed, sin, cos))
