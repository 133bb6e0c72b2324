"""The branch functions against a plain block, in float64 and in 16 bit, and what they keep."""

import pytest
import torch
import torch.nn.functional as F

from eva_fast.layers.attention import AttentionWeights, attention_branch
from eva_fast.layers.linear import Matrix
from eva_fast.layers.mlp import MlpWeights, mlp_branch
from eva_fast.layers.projection import projection_branch
from eva_fast.layers.stream import Stream
from tests.ops.helpers import Accuracy, leaf, masks

EPS = 1e-6


def parameters(dim, hidden, predict, dtype=torch.float32):
    def matrix(rows, columns):
        return leaf(rows, columns, dtype=dtype, scale=columns**-0.5)

    return {
        "norm_weight": leaf(dim, dtype=dtype),
        "norm_bias": leaf(dim, dtype=dtype),
        "qkv": matrix(3 * dim, dim),
        "q_bias": leaf(dim, dtype=dtype),
        "v_bias": leaf(dim, dtype=dtype),
        "proj": matrix(dim, dim),
        "fc1": matrix(hidden, dim),
        "fc1_bias": leaf(hidden, dtype=dtype),
        "fc2": matrix(dim, hidden),
        "head": matrix(predict, dim),
        "head_bias": leaf(predict, dtype=dtype),
        "pending_bias": leaf(dim, dtype=dtype),
    }


def add(x, branch, bias, scale):
    update = branch + bias
    return x + (update if scale is None else update * scale.to(x.dtype)[:, None, None])


def rows_of(x, mask):
    index = (mask.long() + 1)[:, :, None].expand(-1, -1, x.shape[-1])
    return x.gather(1, index)


def plain_attention(p, x, branch, scale, mask, heads):
    x = add(x, branch, p["pending_bias"], scale)
    y = F.layer_norm(x, x.shape[-1:], p["norm_weight"], p["norm_bias"], EPS)
    bias = torch.cat((p["q_bias"], torch.zeros_like(p["q_bias"]), p["v_bias"]))
    q, k, v = F.linear(y, p["qkv"], bias).chunk(3, -1)
    if mask is not None:
        x, q = rows_of(x, mask), rows_of(q, mask)
    q, k, v = (t.view(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return x, F.linear((weights @ v).transpose(1, 2).flatten(2), p["proj"])


def plain_mlp(p, x, branch, scale, mask, heads):
    x = add(x, branch, p["pending_bias"], scale)
    y = F.layer_norm(x, x.shape[-1:], p["norm_weight"], p["norm_bias"], EPS)
    return x, F.linear(F.gelu(F.linear(y, p["fc1"], p["fc1_bias"])), p["fc2"])


def plain_projection(p, x, branch, scale, mask, heads):
    x = add(x, branch, p["pending_bias"], scale)
    y = F.layer_norm(x, x.shape[-1:], p["norm_weight"], p["norm_bias"], EPS)
    return (F.linear(y, p["head"], p["head_bias"]).flatten(0, 1),)


def attention_weights(p, heads, copies=None):
    copies = copies or {}
    bias = torch.cat((p["q_bias"], torch.zeros_like(p["q_bias"]), p["v_bias"])).detach()
    compute = copies["qkv"].dtype if copies else bias.dtype
    return AttentionWeights(
        norm_weight=p["norm_weight"], norm_bias=p["norm_bias"],
        qkv=Matrix(p["qkv"], copies.get("qkv")), q_bias=p["q_bias"], v_bias=p["v_bias"],
        packed_bias=bias.to(compute), proj=Matrix(p["proj"], copies.get("proj")),
        proj_bias=None, num_heads=heads, eps=EPS,
    )  # fmt: skip


def fused(which, p, x, branch, scale, mask, heads, copies=None):
    stream, copies = Stream(x, branch, p["pending_bias"], scale), copies or {}
    if which == "attention":
        tokens = None if mask is None else mask + 1
        return attention_branch(stream, attention_weights(p, heads, copies), tokens)[:2]
    if which == "mlp":
        weights = MlpWeights(
            norm_weight=p["norm_weight"], norm_bias=p["norm_bias"],
            fc1=Matrix(p["fc1"], copies.get("fc1")), fc1_bias=p["fc1_bias"],
            fc2=Matrix(p["fc2"], copies.get("fc2")), fc2_bias=p["pending_bias"], eps=EPS,
        )  # fmt: skip
        return mlp_branch(stream, weights)[:2]
    head = Matrix(p["head"], copies.get("head"))
    return (projection_branch(stream, p["norm_weight"], p["norm_bias"], head, p["head_bias"], EPS),)


PLAIN = {"attention": plain_attention, "mlp": plain_mlp, "projection": plain_projection}
NEEDS = {
    "attention": ("norm_weight", "norm_bias", "qkv", "q_bias", "v_bias", "proj", "pending_bias"),
    "mlp": ("norm_weight", "norm_bias", "fc1", "fc1_bias", "fc2", "pending_bias"),
    "projection": ("norm_weight", "norm_bias", "head", "head_bias", "pending_bias"),
}

# batch, tokens, width, heads, hidden, predict, with drop-path, masked (None: all tokens)
CASES = {
    "odd sizes": (3, 17, 60, 3, 279, 20, False, None),
    "drop-path": (3, 17, 60, 3, 279, 20, True, None),
    "heads of 88": (2, 10, 176, 2, 99, 32, True, None),
    "masked queries": (3, 17, 60, 3, 279, 20, False, 6),
    "masked queries, drop-path": (2, 26, 176, 2, 99, 32, True, 11),
}


def outputs_and_gradients(function, tensors, upstream):
    out = function()
    upstream = [u.to(o.dtype) for u, o in zip(upstream, out, strict=True)]
    return [*out, *torch.autograd.grad(out, tensors, upstream)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("which", PLAIN)
def test_against_float64(which, case):
    batch, tokens, width, heads, hidden, predict, dropped, masked = CASES[case]
    if masked is not None and which != "attention":
        pytest.skip("only attention treats masked tokens apart")
    torch.manual_seed(0)
    accuracy = Accuracy()
    for _ in range(48):  # the ratio of two largest errors is a matter of luck over few draws
        p = parameters(width, hidden, predict)
        x, branch = leaf(batch, tokens, width), leaf(batch, tokens, width)
        scale = torch.tensor([0.0, *[1.25] * (batch - 1)]) if dropped else None
        mask = None if masked is None else masks(batch, tokens - 1, masked)
        wide = {k: v.detach().double().requires_grad_() for k, v in p.items()}
        x64, branch64 = (t.detach().double().requires_grad_() for t in (x, branch))
        scale64 = None if scale is None else scale.double()
        plain = PLAIN[which]
        with torch.no_grad():
            upstream = [torch.randn_like(o) for o in plain(p, x, branch, scale, mask, heads)]
        names = NEEDS[which]
        found = outputs_and_gradients(
            lambda: fused(which, p, x, branch, scale, mask, heads),  # noqa: B023
            [x, branch, *(p[n] for n in names)],
            upstream,
        )
        usual = outputs_and_gradients(
            lambda: plain(p, x, branch, scale, mask, heads),  # noqa: B023
            [x, branch, *(p[n] for n in names)],
            upstream,
        )
        exact = outputs_and_gradients(
            lambda: plain(wide, x64, branch64, scale64, mask, heads),  # noqa: B023
            [x64, branch64, *(wide[n] for n in names)],
            upstream,
        )
        labels = [*(f"output {i}" for i in range(len(upstream))), "x", "branch", *names]
        for label, a, b, c in zip(labels, found, usual, exact, strict=True):
            accuracy.add(label, a, b, c)
    accuracy.check()


@pytest.mark.parametrize("which", PLAIN)
def test_16_bit_arithmetic_with_float32_parameters(which):
    """GEMMs read rounded copies; gradients arrive at the float32 parameters, in float32, no worse
    than a plain block in bfloat16 altogether."""
    torch.manual_seed(0)
    accuracy = Accuracy()
    for _ in range(4):
        p = parameters(60, 99, 20)
        copies = {k: v.detach().bfloat16() for k, v in p.items() if v.ndim == 2}
        with torch.no_grad():
            for k, v in copies.items():
                p[k].copy_(v)
        x = leaf(2, 17, 60, dtype=torch.bfloat16)
        branch = leaf(2, 17, 60, dtype=torch.bfloat16)
        half = {k: v.detach().bfloat16().requires_grad_() for k, v in p.items()}
        wide = {k: v.detach().double().requires_grad_() for k, v in p.items()}
        x64, branch64 = (t.detach().double().requires_grad_() for t in (x, branch))
        names = NEEDS[which]
        found = fused(which, p, x, branch, None, None, 3, copies)
        upstream = [torch.randn_like(o) for o in found]
        gradients = torch.autograd.grad(found, [x, *(p[n] for n in names)], upstream)
        assert all(g.dtype == torch.float32 for g in gradients[1:])
        usual = outputs_and_gradients(
            lambda: PLAIN[which](half, x, branch, None, None, 3),  # noqa: B023
            [x, *(half[n] for n in names)],
            upstream,
        )
        exact = outputs_and_gradients(
            lambda: PLAIN[which](wide, x64, branch64, None, None, 3),  # noqa: B023
            [x64, *(wide[n] for n in names)],
            upstream,
        )
        labels = [*(f"output {i}" for i in range(len(upstream))), "x", *names]
        for label, a, b, c in zip(labels, [*found, *gradients], usual, exact, strict=True):
            accuracy.add(label, a.float(), b.float(), c)
    accuracy.check()


@pytest.mark.parametrize(("which", "units"), [("attention", 4), ("mlp", 1 + 2)])
def test_keeps_the_stream_and_one_projection(which, units):
    """In units of a [B, T, D] tensor: x' and qkv (out is computed again on CPUs), or x' and h."""
    p = parameters(64, 128, 20)
    x, branch = leaf(2, 17, 64), leaf(2, 17, 64)
    own = {t.untyped_storage().data_ptr() for t in p.values()}
    kept = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = fused(which, p, x, branch, None, None, 4)
    statistics = 4 * 2 * 17 * (2 + 4)  # mean, rstd, log-sum-exp of four heads
    assert sum(kept.values()) <= units * x.numel() * 4 + statistics
    assert all(o.requires_grad for o in out)


def test_a_first_branch_without_anything_pending():
    p = parameters(60, 99, 20)
    x = leaf(2, 9, 60)
    new_x, out = attention_branch(Stream(x), attention_weights(p, 3))[:2]
    torch.testing.assert_close(new_x, x, rtol=0, atol=0)
    p["pending_bias"] = torch.zeros(60)
    expected = plain_attention(p, x, torch.zeros_like(x), None, None, 3)
    upstream = [torch.randn_like(x), torch.randn_like(x)]
    found = torch.autograd.grad((new_x, out), [x, p["qkv"]], upstream)
    wanted = torch.autograd.grad(expected, [x, p["qkv"]], upstream)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", PLAIN)
def test_compiled_equals_eager(which):
    p = parameters(60, 99, 20)
    x, branch = leaf(2, 9, 60), leaf(2, 9, 60)
    names = NEEDS[which]

    def run(x, branch):
        return fused(which, p, x, branch, None, None, 3)

    upstream = [torch.randn_like(o) for o in run(x, branch)]
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    tensors = [x, branch, *(p[n] for n in names)]
    expected = outputs_and_gradients(lambda: run(x, branch), tensors, upstream)
    found = outputs_and_gradients(lambda: compiled(x, branch), tensors, upstream)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
