"""C++ attention at every instruction set this CPU has."""

import pytest
import torch

from eva_fast import ops
from eva_fast.ops.linear import linear
from eva_fast.ops.packed_attention import (
    packed_attention,
    packed_attention_backward,
    packed_attention_forward,
)
from tests.ops.helpers import (
    check_against_float64,
    check_compiled,
    leaf,
    needs_native,
    opcheck,
    rows_apart,
)

pytestmark = needs_native


# batch, tokens, queries (None: all), heads, head dimension
HEADS = [(2, 17, None, 3, 8), (1, 257, None, 2, 64), (2, 65, 26, 2, 88), (1, 700, None, 1, 20)]


def attention_inputs(batch, tokens, queries, heads, dim, dtype=torch.float32):
    q = None if queries is None else leaf(batch, queries, heads, dim, dtype=dtype)
    return q, leaf(batch, tokens, 3 if q is None else 2, heads, dim, dtype=dtype), dim**-0.5


@pytest.mark.parametrize("shape", HEADS, ids=str)
def test_attention_against_float64(isa, shape):
    if isa == "baseline":
        pytest.skip("without vectors PyTorch's own attention runs")
    check_against_float64(
        lambda *a: packed_attention(*a)[0],
        lambda *a: packed_attention.reference(*a)[0],
        lambda: attention_inputs(*shape),
    )


def biased_inputs(batch, tokens, queries, heads, dim):
    q, packed, scale = attention_inputs(batch, tokens, queries, heads, dim)
    bias = leaf(heads, queries or tokens, tokens)
    return q, packed, bias, scale, torch.randn(batch, *bias.shape[1:])


@pytest.mark.parametrize("shape", HEADS[::2], ids=str)
def test_biased_attention_against_float64(isa, shape):
    if isa == "baseline":
        pytest.skip("without vectors PyTorch's operators run")
    check_against_float64(
        lambda *a: ops.biased_attention(*a)[0],
        lambda *a: ops.biased_attention.reference(*a)[0],
        lambda: biased_inputs(*shape),
        draws=1,
    )


def test_biased_attention_gives_the_same_bits_with_any_number_of_threads():
    """The bias's gradient is a sum over images: 70 of them are several groups."""
    inputs = biased_inputs(70, 20, None, 3, 8)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out, _ = ops.biased_attention(*inputs, implementation="native")
            torch.manual_seed(1)
            gradients = torch.autograd.grad(out, inputs[1:3], torch.randn_like(out))
            found.append([out, *gradients])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


@pytest.mark.parametrize("shape", HEADS[:3], ids=str)
def test_attention_output_comes_back_where_it_was_not_kept(isa, shape):
    q, packed, scale = attention_inputs(*shape)
    with torch.no_grad():
        out, lse = packed_attention_forward(q, packed, scale)
        dout = torch.randn_like(out)
        kept = packed_attention_backward(dout, q, packed, out, lse, scale)
        again = packed_attention_backward(dout, q, packed, None, lse, scale)
        exact = packed_attention.reference(
            None if q is None else q.double(), packed.double(), scale
        )
    torch.testing.assert_close(again[2], out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again[1], kept[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.double(), exact[1], rtol=1e-6, atol=1e-6)


def test_attention_of_large_scores(isa):
    """A row whose scores span thousands: the largest is taken off before exp."""
    q, packed, scale = attention_inputs(1, 33, None, 2, 16)
    with torch.no_grad():
        packed *= 60
        out, lse = packed_attention_forward(q, packed, scale)
        exact, exact_lse = packed_attention.reference(q, packed.double(), scale)
    torch.testing.assert_close(out.double(), exact, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-3)


def test_strided_heads(isa):
    q, packed, scale = attention_inputs(2, 20, 7, 2, 12)
    apart = rows_apart(packed)
    dense, gaps = packed_attention(q, packed, scale), packed_attention(q, apart, scale)
    torch.testing.assert_close(gaps, dense, rtol=0, atol=0)


def test_attention_and_gemm_are_well_formed_ops():
    q, packed, scale = attention_inputs(2, 9, 4, 2, 8)
    opcheck(torch.ops.eva_fast.packed_attention.default, (q, packed, scale))
    a, b, bias = torch.randn(5, 7), torch.randn(7, 3), torch.randn(3)
    opcheck(torch.ops.eva_fast.gemm.default, (a, b, bias))
    check_compiled(lambda *t: packed_attention(*t)[0], (q, packed, scale))
    check_compiled(linear, (leaf(2, 5, 7), leaf(3, 7), leaf(3)))
