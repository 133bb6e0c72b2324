"""LayerScale in the weights: gradients against float64, 16 and 8 bits, and no copies kept."""

import pytest
import torch

from eva_fast.layers import Block, keep_copies, plain, use_fp8
from tests.ops.helpers import Accuracy, leaf

BF16 = torch.bfloat16


def block(kit=None, seed=0, **options):
    torch.manual_seed(seed)
    made = (kit.Block if kit else Block)(48, 3, 96, 0.0, layer_scale=0.1, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def run(made, x, upstream):
    out = made(x)
    out = out if isinstance(out, torch.Tensor) else out.added()
    names, parameters = zip(*made.named_parameters(), strict=True)
    found = torch.autograd.grad(out, [x, *parameters], upstream.to(out.dtype))
    return dict(zip(("out", "x", *names), (out.detach(), *found), strict=True))


def test_gradients_against_float64():
    accuracy = Accuracy()
    for seed in range(16):
        mine, usual, wide = block(seed=seed), block(plain, seed), block(plain, seed).double()
        x = leaf(3, 10, 48)
        upstream = torch.randn_like(x)
        found, expected = run(mine, x, upstream), run(usual, x, upstream)
        exact = run(wide, x.detach().double().requires_grad_(), upstream.double())
        for name, value in exact.items():
            accuracy.add(name, found[name], expected[name], value)
    accuracy.check()


def test_in_16_bits_gradients_are_float32_and_no_worse_than_all_in_16_bits():
    accuracy = Accuracy()
    for seed in range(4):
        mine, usual, wide = block(seed=seed), block(plain, seed).to(BF16), block(plain, seed)
        x = leaf(3, 10, 48, dtype=BF16)
        upstream = torch.randn(3, 10, 48)
        found, expected = run(mine, x, upstream), run(usual, x, upstream)
        exact = run(wide.double(), x.detach().double().requires_grad_(), upstream.double())
        assert all(g.dtype == torch.float32 for n, g in found.items() if n not in ("out", "x"))
        for name, value in exact.items():
            accuracy.add(name, found[name].float(), expected[name].float(), value)
    accuracy.check()


def test_a_scaled_weight_keeps_no_copy():
    made = block()
    kept = keep_copies(made, BF16)
    names = {name for name, p in made.named_parameters() if p in kept}
    assert names == {"attn.qkv.weight", "attn.q_bias", "attn.v_bias", "mlp.fc1.weight"}
    x = torch.randn(2, 5, 48, dtype=BF16)
    before = made(x).added()
    with torch.no_grad():
        made.gamma_1.mul_(2)
    assert not torch.equal(made(x).added(), before)  # nothing outlives a change of gamma alone


@pytest.mark.parametrize("kept", [False, True])
def test_products_in_8_bits_read_the_scaled_weight(kept):
    made, other = block(), block()
    assert not use_fp8(made)
    if kept:
        keep_copies(made, BF16)
    x = leaf(4, 16, 48, dtype=BF16)
    upstream = torch.randn(4, 16, 48)
    found, expected = run(made, x, upstream), run(other, x, upstream)
    for name, value in expected.items():
        error = (found[name].float() - value.float()).norm() / value.float().norm()
        assert error < 0.12, name
