import pytest
import torch

from eva_fast import ops
from eva_fast.ops.gradient_norm import reference
from tests.ops.helpers import DTYPES, SHORT, Accuracy, opcheck

# A chunk of the Triton kernel and a bit, odd sizes, one element, a scalar, several chunks, nothing.
SHAPES = [(16384 + 16,), (7, 3), (1,), (), (60, 88), (3 * 16384 + 5,), (0, 4)]
RTOL = 3e-6  # PyTorch's own sum of a tensor's squares is 1.1e-6 off on a CPU
EVEN = [(16384 + 16,), (60, 88), (16,)]


def gradients(dtype=torch.float32, shapes=SHAPES, scale=1.0):
    return [(torch.randn(s) * scale).to(dtype) for s in shapes]


def exact(grads):
    return torch.cat([g.double().flatten() for g in grads]).square().sum().sqrt()


@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
@pytest.mark.parametrize("shapes", [SHAPES, EVEN, [(1,)]], ids=["odd", "aligned", "one element"])
def test_against_float64(kernels, shapes, dtype):
    grads = gradients(dtype, shapes)
    found = ops.gradient_norm(grads)
    assert found.dtype == torch.float32 and found.shape == ()
    accuracy = Accuracy()
    usual = torch.nn.utils.get_total_norm([g.float() for g in grads])
    accuracy.add("norm", found, usual, exact(grads))
    accuracy.check()
    torch.testing.assert_close(found.double(), exact(grads), rtol=RTOL, atol=0)


def test_reference_in_float64(kernels):
    grads = gradients(torch.float64)
    for function in (reference, ops.gradient_norm):
        torch.testing.assert_close(function(grads), exact(grads), rtol=1e-14, atol=0)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_small_and_large_gradients(kernels, scale):
    grads = gradients(scale=scale)
    torch.testing.assert_close(ops.gradient_norm(grads).double(), exact(grads), rtol=RTOL, atol=0)


def test_the_same_bits_wherever_gradients_are(kernels):
    """As a step's move about, more often than tables are kept; and where one of them stays."""
    grads = gradients()
    first, kept = ops.gradient_norm(grads), []
    for turn in range(20):
        kept.append([g.clone() for g in grads[turn % 3 :]])
        assert torch.equal(ops.gradient_norm([*grads[: turn % 3], *kept[-1]]), first)
    assert torch.equal(ops.gradient_norm(grads), first)


def test_new_values_at_the_same_addresses(kernels):
    grads = gradients()
    before = ops.gradient_norm(grads)
    for g in grads:
        g.mul_(2)
    assert torch.equal(ops.gradient_norm(grads), before * 2)


def test_addresses_that_are_no_multiples_of_16_bytes_and_strides(kernels):
    grads = [torch.randn(16 * 70 + 1)[1:], torch.randn(20, 16).t(), torch.randn(48)]
    torch.testing.assert_close(ops.gradient_norm(grads).double(), exact(grads), rtol=RTOL, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 1, 5])
def test_what_is_not_finite_shows(kernels, value, place):
    grads = gradients()
    grads[place].view(-1)[-1] = value
    assert not ops.gradient_norm(grads).isfinite()


@pytest.mark.parametrize("shapes", [[(0,)], [(0, 3), (0,)], [(5,), (16,)]], ids=str)
def test_nothing(kernels, shapes):
    assert ops.gradient_norm([torch.zeros(s) for s in shapes]) == 0


def test_opcheck(kernels):
    opcheck(torch.ops.eva_fast.gradient_norm.default, [gradients()])


def test_compiled():
    torch._dynamo.reset()
    grads = gradients()
    traced = torch.compile(ops.gradient_norm, fullgraph=True, backend="aot_eager")(grads)
    assert torch.equal(traced, ops.gradient_norm(grads))


BAD = {
    "grads is empty": [],
    r"grads\[1\] has dtype torch.float16": [torch.zeros(2), torch.zeros(2).half()],
    r"grads\[0\] has dtype torch.int64": [torch.zeros(2, dtype=torch.int64)],
    r"grads\[1\] is on meta": [torch.zeros(2, device="cpu"), torch.zeros(2, device="meta")],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    with pytest.raises(ValueError, match=f"gradient_norm: {message}"):
        ops.gradient_norm(BAD[message])
