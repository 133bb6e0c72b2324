"""Swin V2's layers: the fused ones against the plain ones, and what both stand on against torch's."""

import math

import pytest
import torch
import torch.nn.functional as F

from eva_fast.layers import plain_swin, swin
from eva_fast.layers.unit_heads import from_unit_heads_, to_unit_heads_
from eva_fast.layers.window import Windows
from tests.ops.helpers import leaf

CASES = {
    "shifted": Windows(6, 3, 1),
    "at rest": Windows(6, 3),
    "one window": Windows(4, 4),
}


def randomised(module, seed=0):
    torch.manual_seed(seed)
    for name, p in module.named_parameters():
        if "logit_scale" not in name:
            torch.nn.init.normal_(p, std=0.3)
    return module


def pair(kind, *arguments):
    """The fused module, the plain one, and the plain one in float64, with the same values."""
    fused = randomised(getattr(swin, kind)(*arguments))
    plain, exact = (getattr(plain_swin, kind)(*arguments) for _ in range(2))
    plain.load_state_dict(fused.state_dict())
    exact.load_state_dict(fused.state_dict())
    return fused, plain, exact.double()


def run(module, x, upstream, seed=3):
    """Output, gradient of x and of the parameters, float64."""
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(seed)
    out = module(x)
    out.backward(upstream.to(out.dtype))
    named = {name: p.grad for name, p in module.named_parameters()}
    return {"out": out, "x": x.grad} | named


@pytest.mark.parametrize("drop_path", [0.0, 0.5], ids=["all", "dropped"])
@pytest.mark.parametrize("case", CASES)
def test_a_block(kernels, case, drop_path):
    """As near to float64 as the plain one is, within a factor of two and the last bits."""
    w = CASES[case]
    block, plain, exact = pair("Block", 12, 3, 20, drop_path, w)
    order = w.order() if not w.shift else Windows(w.side, w.size).order()
    x, upstream = leaf(4, w.side**2, 12), torch.randn(4, w.side**2, 12)
    found = run(block, x[:, order], upstream[:, order])
    for name in ("out", "x"):
        back = torch.empty_like(found[name])
        back[:, order] = found[name]
        found[name] = back
    near, wanted = run(plain, x, upstream), run(exact, x.double(), upstream)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        allowed = 2 * (near[name] - value).norm() + 2e-6 * value.norm()
        assert (found[name] - value).norm() <= allowed, name


def test_merging(kernels):
    """Tokens in the order of windows go in, and come out in that of the next stage's."""
    windows, following = Windows(8, 4), Windows(4, 2)
    merge, plain, _ = pair("PatchMerging", 6, windows, following)
    x, upstream = leaf(2, 64, 6), torch.randn(2, 16, 12)
    before, after = windows.order(), following.order()
    found, wanted = run(merge, x[:, before], upstream[:, after]), run(plain, x, upstream)
    wanted["out"], wanted["x"] = wanted["out"][:, after], wanted["x"][:, before]
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_no_bit():
    block = randomised(swin.Block(12, 3, 20, 0.5, CASES["shifted"]))
    x, upstream = leaf(4, 36, 12), torch.randn(4, 36, 12)
    kept = run(block, x, upstream)
    kept = {name: value.clone() for name, value in kept.items()}
    block.zero_grad()
    block.recompute = True
    again = run(block, x, upstream)
    assert all(torch.equal(again[name], value) for name, value in kept.items())


def test_compiled_is_eager():
    block = randomised(swin.Block(12, 3, 20, 0.0, CASES["shifted"]))
    x = leaf(2, 36, 12)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_unit_heads(dtype):
    """Against `normalize` and autograd in float64. One head's scale is above the largest, and one q is
    no larger than rounding."""
    torch.manual_seed(0)
    packed = torch.randn(3, 5, 3, 4, 7).to(dtype)
    packed[0, 0, 0, 0] *= 1e-4
    logit_scale = torch.tensor([1.0, 6.0, 0.0, 4.0])[:, None, None]
    upstream = torch.randn_like(packed)

    wide, scale = packed.double().requires_grad_(), logit_scale.double().requires_grad_()
    q, k, v = wide.unbind(2)
    q = F.normalize(q, dim=-1) * scale.flatten().clamp(max=math.log(100)).exp()[:, None]
    expected = torch.stack((q, F.normalize(k, dim=-1), v), 2)
    expected.backward(upstream.double())

    factor = to_unit_heads_(packed, logit_scale)
    gradient = upstream.clone()
    dscale = from_unit_heads_(gradient, packed, factor, logit_scale)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for found, wanted in ((packed, expected), (gradient, wide.grad), (dscale, scale.grad)):
        assert (found.double() - wanted).norm() <= tolerance * wanted.norm()
    assert dscale[1] == 0
