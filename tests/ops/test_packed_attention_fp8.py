import pytest
import torch

from eva_fast import ops
from tests.ops.eight_bits import check_columns
from tests.ops.helpers import opcheck

BF16 = torch.bfloat16
CASES = {
    "17 tokens, head 16": (2, 17, 2, 16),
    "50 tokens, head 24": (1, 50, 2, 24),
    "ViT-g's sequence and head": (1, 257, 1, 88),
}


def given(shape, dtype=BF16):
    batch, tokens, heads, dim = shape
    packed = torch.randn(batch, tokens, 3, heads, dim).to(dtype)
    return packed, dim**-0.5, torch.tensor(2.0**-7)


def rows(t):
    return t.reshape(-1, t.shape[-2] * t.shape[-1])


@pytest.mark.parametrize("case", CASES)
def test_against_the_16_bits_of_attention(kernels, case):
    """Out and gradients in 16 bits are those of `packed_attention`; the 8 bits are exactly of what was
    written in 16."""
    packed, scale, out_scale = given(CASES[case])
    out, eight, lse = ops.packed_attention_fp8(packed, scale, out_scale)
    exact, exact_lse = ops.packed_attention.reference(None, packed.double(), scale)
    torch.testing.assert_close(out.double(), exact, rtol=2e-2, atol=1e-2)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-3, atol=1e-3)
    wanted = ops.quantise_fp8.reference(rows(out), out_scale)
    assert torch.equal(rows(eight).float(), wanted.rows.float())
    dout = torch.randn_like(out)
    found = ops.packed_attention_fp8_backward(dout, packed, out, lse, scale, out_scale, True)
    _, plain, _, sums = ops.packed_attention_backward(
        dout, None, packed, out, lse, scale, want_sums=True
    )
    torch.testing.assert_close(found.dpacked, plain, rtol=2e-2, atol=1e-2)
    torch.testing.assert_close(found.sums, sums, rtol=1e-2, atol=1e-2)
    check_columns(found.out, wanted.rows)
    assert found.largest.max() == found.dpacked.float().abs().max()
    assert found.largest[0] == found.dpacked[:, :, 0].float().abs().max()


def test_no_bias_wanted_and_out_not_kept(kernels):
    packed, scale, out_scale = given((2, 17, 2, 16))
    out, _, lse = ops.packed_attention_fp8(packed, scale, out_scale)
    dout = torch.randn_like(out)
    kept = ops.packed_attention_fp8_backward(dout, packed, out, lse, scale, out_scale)
    again = ops.packed_attention_fp8_backward(dout, packed, None, lse, scale, out_scale)
    assert kept.sums.numel() == again.sums.numel() == 0
    torch.testing.assert_close(again.dpacked, kept.dpacked, rtol=2e-2, atol=1e-2)
    torch.testing.assert_close(again.out.float(), kept.out.float(), rtol=0.15, atol=2.0)


@pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:overflow encountered")
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_shows_in_the_largest(kernels, bad):
    packed, scale, out_scale = given((1, 17, 1, 16))
    out, _, lse = ops.packed_attention_fp8(packed, scale, out_scale)
    dout = torch.randn_like(out)
    dout[0, 3, 0, 2] = bad
    found = ops.packed_attention_fp8_backward(dout, packed, out, lse, scale, out_scale)
    assert not found.largest.isfinite().all()


def test_no_rows(kernels):
    packed, scale, out_scale = given((0, 17, 2, 16))
    out, eight, lse = ops.packed_attention_fp8(packed, scale, out_scale)
    assert out.shape == eight.shape == (0, 17, 2, 16) and lse.shape == (0, 2, 17)
    found = ops.packed_attention_fp8_backward(out, packed, out, lse, scale, out_scale, True)
    assert found.dpacked.shape == packed.shape and found.largest.tolist() == [0.0, 0.0]


def test_bad_use():
    packed, scale, out_scale = given((1, 17, 1, 16))
    with pytest.raises(ValueError, match="out_scale has shape"):
        ops.packed_attention_fp8(packed, scale, torch.ones(3))
    with pytest.raises(ValueError, match="packed has shape"):
        ops.packed_attention_fp8(packed[:, :, :2], scale, out_scale)
    lse = torch.ones(1, 1, 17)
    with pytest.raises(ValueError, match="dout has dtype torch.float32"):
        dout = torch.ones(1, 17, 1, 16)
        ops.packed_attention_fp8_backward(dout, packed, None, lse, scale, out_scale)


def test_opcheck(kernels):
    packed, scale, out_scale = given((1, 17, 1, 16))
    opcheck(torch.ops.eva_fast.packed_attention_fp8.default, (packed, scale, out_scale))
    out, _, lse = ops.packed_attention_fp8(packed, scale, out_scale)
    op = torch.ops.eva_fast.packed_attention_fp8_backward.default
    opcheck(op, (torch.randn_like(out), packed, out, lse, scale, out_scale, True))
