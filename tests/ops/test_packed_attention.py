"""Numbers of attention as it runs here: our kernels, PyTorch's, and on a GPU every library's."""

import pytest
import torch

from eva_fast.ops import registry
from eva_fast.ops.packed_attention import OP, packed_attention
from tests.conftest import on_device, on_gpu
from tests.ops.helpers import DTYPES, SHORT, check_against_float64, check_compiled, leaf

FOR_CPUS = ("cpu_flash", "native")
OTHERS = [n for n in OP.implementations if n not in ("math", "triton", *FOR_CPUS)]
"""Libraries: theirs are other roundings, and their numbers are not ours to promise."""


def on_gpus(*names):
    return [pytest.param((n, "cuda"), id=f"{n} on a GPU", marks=on_gpu) for n in names]


if registry.interpreted():
    ACCURATE = [pytest.param(("triton", "cpu"), id="triton", marks=pytest.mark.interpreted)]
    IMPLEMENTATIONS = ACCURATE
else:
    ACCURATE = [pytest.param(("math", "cpu"), id="math"), *on_gpus("math", "triton")]
    IMPLEMENTATIONS = [
        pytest.param(("cpu_flash", "cpu"), id="cpu_flash"), *ACCURATE, *on_gpus(*OTHERS)
    ]  # fmt: skip


@pytest.fixture
def implementation(request):
    """Its name, on the device where tensors are made meanwhile."""
    name, device = request.param
    with on_device(device):
        yield name


def attend(q, packed, scale, implementation):
    """`packed_attention`; the test is skipped where the implementation does not take the case."""
    like = packed.select(2, 0) if q is None else q
    batch, queries, heads, dim = like.shape
    sizes = (batch, queries, packed.shape[1], heads, dim)
    case = registry.Case(packed.device, packed.dtype, sizes)
    obstacle = OP.implementations[implementation].obstacle(case)
    if obstacle is not None:
        pytest.skip(f"{implementation} {obstacle}")
    return packed_attention(q, packed, scale, implementation)


def plain(q, packed, scale):
    """In stock PyTorch, every step in the input's dtype."""
    parts = packed.unbind(2)
    q, k, v = (t.transpose(1, 2) for t in (parts if q is None else (q, *parts)))
    scores = q @ k.transpose(-2, -1) * scale
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.float().logsumexp(-1)


def whole(batch, tokens, heads, dim, dtype=torch.float32):
    return None, leaf(batch, tokens, 3, heads, dim, dtype=dtype), dim**-0.5


def asked(batch, queries, tokens, heads, dim, dtype=torch.float32):
    q = leaf(batch, queries, heads, dim, dtype=dtype)
    return q, leaf(batch, tokens, 2, heads, dim, dtype=dtype), dim**-0.5


CASES = {
    "17 tokens, head 16": lambda d: whole(2, 17, 2, 16, d),
    "50 tokens, head 64": lambda d: whole(1, 50, 1, 64, d),
    "257 tokens, head 88": lambda d: whole(1, 257, 1, 88, d),
    "head 60": lambda d: whole(1, 20, 1, 60, d),
    "66 tokens: one more than a tile": lambda d: whole(1, 66, 1, 24, d),
    "7 of 50 tokens ask, head 88": lambda d: asked(1, 7, 50, 1, 88, d),
    "105 of 257 tokens ask": lambda d: asked(1, 105, 257, 1, 88, d),
    "one of 17 asks": lambda d: asked(1, 1, 17, 2, 16, d),
}
STUDENTS = {
    "ViT-g": lambda d: whole(2, 257, 3, 88, d),
    "ViT-g, its last block": lambda d: asked(2, 105, 257, 3, 88, d),
    "ViT-B with patches of 16": lambda d: whole(2, 197, 3, 64, d),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("implementation", ACCURATE, indirect=True)
def test_against_float64(implementation, case, dtype):
    check_against_float64(
        lambda *a: attend(*a, implementation)[0],
        lambda *a: plain(*a)[0],
        lambda: CASES[case](dtype),
        draws=1 if "257" in case else 2,
    )


@pytest.mark.skipif(registry.interpreted(), reason="the cases above are these, smaller")
@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
@pytest.mark.parametrize("case", STUDENTS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
def test_students_shapes(implementation, case, dtype):
    """Out, and the gradients of random upstream ones, at most three times as far from float64 as
    plain PyTorch in that dtype; in the middle, not in the worst element, for libraries round as
    they like. Nothing of the outputs is left unwritten: fresh memory is NaN."""
    inputs = STUDENTS[case](dtype)
    leaves = [t for t in inputs if torch.is_tensor(t)]
    out, lse = attend(*inputs, implementation)
    upstream = torch.randn_like(out)
    wide = [t.detach().double().requires_grad_() if torch.is_tensor(t) else t for t in inputs]
    exact, exact_lse = plain(*wide)
    usual, _ = plain(*inputs)
    torch.testing.assert_close(lse, exact_lse.float(), rtol=1e-3, atol=1e-3)

    def all_of(out, leaves):
        return [out, *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]

    found, normal = all_of(out, leaves), all_of(usual, leaves)
    wanted = all_of(exact, [t for t in wide if torch.is_tensor(t)])
    for i, (a, b, e) in enumerate(zip(found, normal, wanted, strict=True)):
        error, plains = ((t.double() - e).norm() / e.norm() for t in (a, b))
        floor = torch.finfo(dtype).eps / 4  # where plain PyTorch happens to be exact
        assert error <= max(3 * plains, floor), f"value {i}: {error:.2e}, plain {plains:.2e}"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
def test_against_the_reference(implementation, case):
    """All implementations, the library's too, and their log-sum-exp."""
    inputs = CASES[case](torch.float32)
    out, lse = attend(*inputs, implementation)
    want, want_lse = packed_attention.reference(*inputs)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(lse, want_lse)
    assert out.is_contiguous() and lse.is_contiguous() and lse.dtype == torch.float32
    assert not lse.requires_grad
    upstream = torch.randn_like(out)
    leaves = [t for t in inputs if torch.is_tensor(t)]
    found = torch.autograd.grad(out, leaves, upstream)
    for a, b in zip(found, torch.autograd.grad(want, leaves, upstream), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("implementation", ACCURATE, indirect=True)
def test_one_token(implementation):
    """Softmax over a single key: out is v, and q and k have no gradient."""
    _, packed, scale = whole(2, 1, 2, 60)
    out, lse = attend(None, packed, scale, implementation)
    torch.testing.assert_close(out, packed[:, :, 2])
    torch.testing.assert_close(lse[:, :, 0], (packed[:, 0, 0] * packed[:, 0, 1]).sum(-1) * scale)
    (gradient,) = torch.autograd.grad(out, packed, torch.ones_like(out))
    torch.testing.assert_close(gradient[:, :, 2], torch.ones_like(out))
    assert gradient[:, :, :2].abs().max() < 1e-5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
def test_large_scores(implementation):
    """Scores of some hundreds: exp without the running maximum would overflow."""
    _, packed, scale = whole(1, 20, 1, 16)
    packed = (packed.detach() * 20).requires_grad_()
    out, lse = attend(None, packed, scale, implementation)
    exact, exact_lse = packed_attention.reference(None, packed.double(), scale)
    torch.testing.assert_close(out.double(), exact, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=0)
    assert torch.autograd.grad(out, packed, torch.ones_like(out))[0].isfinite().all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
def test_strided(implementation):
    """Projections with gaps between tokens, and k, v of a wider tensor."""
    wide = torch.randn(2, 20, 4, 2, 24)
    packed = wide[:, :, 1:]
    q, kv = wide[:, :7, 0], wide[:, :, 2:]
    for inputs in ((None, packed), (q, kv)):
        out, lse = attend(*inputs, 0.2, implementation)
        dense = [None if t is None else t.contiguous() for t in inputs]
        want, want_lse = attend(*dense, 0.2, implementation)
        torch.testing.assert_close(out, want, rtol=0, atol=0)
        torch.testing.assert_close(lse, want_lse, rtol=0, atol=0)


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
    op, backward = (
        torch.ops.eva_fast.packed_attention,
        torch.ops.eva_fast.packed_attention_backward,
    )
    for inputs in (whole(1, 2, 1, 16), asked(1, 1, 2, 1, 16)):
        torch.library.opcheck(op.default, (*inputs, implementation))
        q, packed, scale = (t.detach() if torch.is_tensor(t) else t for t in inputs)
        out, lse = op(q, packed, scale, implementation)
        arguments = out, q, packed, out, lse, scale, implementation
        torch.library.opcheck(backward.default, (*arguments, False))
        torch.library.opcheck(backward.default, (*arguments, True))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, indirect=True)
def test_compiled(implementation):
    inputs = asked(1, 3, 5, 2, 16)
    attend(*inputs, implementation)  # or skipped: what is asked about cases is no part of a graph
    check_compiled(lambda *a: packed_attention(*a, implementation), inputs)
