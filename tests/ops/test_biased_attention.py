"""Attention with a bias of the scores: every implementation, windows and masks, and its gradients."""

import pytest
import torch

from eva_fast.ops import registry
from eva_fast.ops.biased_attention import (
    OP,
    biased_attention,
    biased_attention_backward,
    biased_attention_forward,
)
from tests.conftest import on_device, on_gpu
from tests.ops.helpers import check_against_float64, check_compiled, leaf, opcheck, with_dtypes

if registry.interpreted():
    IMPLEMENTATIONS = [pytest.param(("triton", "cpu"), id="triton", marks=pytest.mark.interpreted)]
else:
    IMPLEMENTATIONS = [
        pytest.param((name, "cpu"), id=name) for name in OP.implementations if name != "triton"
    ] + [
        pytest.param((name, "cuda"), id=f"{name} on a GPU", marks=on_gpu)
        for name in OP.implementations
        if name != "native"
    ]  # fmt: skip


@pytest.fixture
def implementation(request):
    """Its name, on the device where tensors are made meanwhile."""
    name, device = request.param
    with on_device(device):
        yield name


def attend(q, packed, bias, scale, mask, implementation):
    """`biased_attention`; the test is skipped where the implementation does not take the case."""
    obstacle = OP.implementations[implementation].obstacle(
        registry.Case(packed.device, packed.dtype)
    )
    if obstacle is not None:
        pytest.skip(f"{implementation} {obstacle}")
    return biased_attention(q, packed, bias, scale, mask, implementation)


def plain(q, packed, bias, scale, mask):
    """In stock PyTorch, every step in the input's dtype."""
    parts = packed.unbind(2)
    q, k, v = (t.transpose(1, 2) for t in (parts if q is None else (q, *parts)))
    scores = q @ k.transpose(-2, -1) * scale + bias.to(q.dtype)
    if mask is not None:
        scores = scores + mask.to(q.dtype).repeat(len(q) // len(mask), 1, 1)[:, None]
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.float().logsumexp(-1)


def whole(batch, tokens, heads, dim, dtype=torch.float32, windows=0):
    """windows: of a shifted grid, where some pairs of tokens may not see each other."""
    packed = leaf(batch, tokens, 3, heads, dim, dtype=dtype)
    bias = leaf(heads, tokens, tokens)
    mask = None
    if windows:
        part = torch.randint(0, 3, (windows, tokens))
        mask = torch.where(part[:, :, None] == part[:, None], 0.0, -100.0)
    return None, packed, bias, dim**-0.5, mask


def asked(batch, queries, tokens, heads, dim, dtype=torch.float32):
    q = leaf(batch, queries, heads, dim, dtype=dtype)
    packed = leaf(batch, tokens, 2, heads, dim, dtype=dtype)
    return q, packed, leaf(heads, queries, tokens), dim**-0.5, None


CASES = {
    "windows of 16, head 32, masked": lambda d: whole(6, 16, 2, 32, d, windows=3),
    "17 tokens, head 16": lambda d: whole(3, 17, 2, 16, d),
    "66 tokens, head 24": lambda d: whole(2, 66, 1, 24, d),
    "windows of 49, head 32": lambda d: whole(2, 49, 1, 32, d),
    "7 of 50 tokens ask, head 88": lambda d: asked(2, 7, 50, 1, 88, d),
}
BRANCHES = {
    "windows of 9, head 32, masked": lambda: whole(6, 9, 1, 32, windows=3),
    "one of 17 asks": lambda: asked(2, 1, 17, 2, 16),
}
STUDENTS = {
    "ViT-B with patches of 16": lambda: whole(2, 197, 2, 64),
    "ViT-L with patches of 14": lambda: whole(2, 257, 1, 64),
    "Swin, shifted windows of 14": lambda: whole(4, 196, 2, 32, windows=2),
}


@pytest.mark.parametrize("case, dtype", with_dtypes(CASES))
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
def test_against_float64(implementation, case, dtype):
    check_against_float64(
        lambda *a: attend(*a, implementation)[0],
        lambda *a: plain(*a)[0],
        lambda: CASES[case](dtype),
        draws=1,
    )


@pytest.mark.skipif(registry.interpreted(), reason="the cases above are these, smaller")
@pytest.mark.parametrize("case", STUDENTS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
def test_students_shapes(implementation, case):
    """Out, dq, dk, dv and dbias at most twice as far from float64 as plain PyTorch in float32."""
    check_against_float64(
        lambda *a: attend(*a, implementation)[0], lambda *a: plain(*a)[0], STUDENTS[case], draws=1
    )


def bits(implementation, inputs):
    torch.manual_seed(1)
    out, lse = attend(*inputs, implementation)
    leaves = [t for t in inputs if torch.is_tensor(t) and t.requires_grad]
    return [out, lse, *torch.autograd.grad(out, leaves, torch.randn_like(out))]


FEW = {"33 tokens, masked": lambda: whole(4, 33, 1, 32, windows=2)}


@pytest.mark.parametrize("case", FEW if registry.interpreted() else FEW | STUDENTS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
def test_two_runs_give_the_same_bits(implementation, case):
    inputs = (FEW | STUDENTS)[case]()
    once, again = bits(implementation, inputs), bits(implementation, inputs)
    for a, b in zip(once, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
@pytest.mark.parametrize("case", BRANCHES)
def test_for_branches(implementation, case):
    """Without checks and autograd: out computed again, and the sums of dq and dv."""
    inputs = BRANCHES[case]()
    attend(*inputs, implementation)
    q, packed, bias, scale, mask = (t.detach() if torch.is_tensor(t) else t for t in inputs)
    with torch.no_grad():
        out, lse = biased_attention_forward(q, packed, bias, mask, scale, implementation)
        want, want_lse = biased_attention.reference(q, packed, bias, scale, mask)
        torch.testing.assert_close(out, want)
        torch.testing.assert_close(lse, want_lse)
        dout = torch.randn_like(out)
        kept = biased_attention_backward(
            dout, q, packed, bias, mask, out, lse, scale, True, implementation
        )
        again = biased_attention_backward(
            dout, q, packed, bias, mask, None, lse, scale, False, implementation
        )
    torch.testing.assert_close(again.out, out)
    torch.testing.assert_close(again.dpacked, kept.dpacked)
    torch.testing.assert_close(again.dbias, kept.dbias)
    dq = kept.dpacked[:, :, 0] if q is None else kept.dq
    sums = torch.stack([t.sum((0, 1)).flatten() for t in (dq, kept.dpacked[:, :, -1])])
    torch.testing.assert_close(kept.bias_sums, sums, rtol=1e-4, atol=1e-5)
    assert again.bias_sums.numel() == 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
def test_strided_and_large(implementation):
    """Projections with gaps between tokens, a bias that is part of a wider one, scores of some
    hundreds."""
    wide = torch.randn(2, 20, 4, 2, 24) * 12
    bias, mask = torch.randn(2, 20, 30)[:, :, :20] * 100, torch.randn(2, 20, 21)[:, :, :20]
    for inputs in (
        (None, wide[:, :, 1:], bias, 0.2, mask),
        (wide[:, :7, 0], wide[:, :, 2:], bias[:, 5:12], 0.2, None),
    ):
        out, lse = attend(*inputs, implementation)
        exact = [t.double() if torch.is_tensor(t) else t for t in inputs]
        want, want_lse = biased_attention.reference(*exact)
        torch.testing.assert_close(out.double(), want, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
def test_nothing_asked(implementation):
    for inputs in (asked(1, 0, 17, 2, 16), whole(0, 17, 2, 16)):
        out, _ = attend(*inputs, implementation)
        assert out.numel() == 0
        leaves = [t for t in inputs if torch.is_tensor(t)]
        for gradient, tensor in zip(torch.autograd.grad(out, leaves, out), leaves, strict=True):
            assert gradient.shape == tensor.shape and not gradient.any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
def test_opcheck(implementation):
    attend(*whole(1, 2, 1, 16), implementation)
    ops = torch.ops.eva_fast
    for inputs in (whole(2, 2, 1, 16, windows=2), asked(1, 1, 2, 1, 16)):
        q, packed, bias, scale, mask = inputs
        arguments = q, packed, bias, mask, scale, implementation
        opcheck(ops.biased_attention.default, arguments)
        q, packed, bias = (None if t is None else t.detach() for t in (q, packed, bias))
        out, lse = ops.biased_attention(q, packed, bias, mask, scale, implementation)
        rest = q, packed, bias, mask, out, lse, scale, True, implementation
        opcheck(ops.biased_attention_backward.default, (out, *rest))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
def test_compiled(implementation):
    inputs = asked(1, 3, 5, 2, 16)
    attend(*inputs, implementation)  # or skipped: what is asked about cases is no part of a graph
    check_compiled(lambda *a: biased_attention(*a, implementation), inputs)


def test_bad_arguments():
    _, packed, bias, scale, mask = whole(4, 5, 2, 16, windows=2)
    for arguments, words in (
        ((None, packed, bias[:1], scale), r"bias has shape \(1, 5, 5\), expected \(2, 5, 5\)"),
        ((None, packed, bias.half(), scale), "bias has dtype torch.float16, expected float32"),
        ((None, packed, bias, scale, mask[:, :4]), r"mask has shape \(2, 4, 5\)"),
        ((None, packed, bias, scale, bias), "mask requires grad"),
        (
            (None, packed, bias, scale, mask.repeat(3, 1, 1)),
            "mask is of 6 windows, expected a divisor",
        ),
        ((None, packed[:, :, :2], bias, scale), "packed has shape"),
    ):
        with pytest.raises(ValueError, match=f"biased_attention: {words}"):
            biased_attention(*arguments)
