"""The C++ kernels at every instruction set this CPU has, and for any number of threads."""

import ctypes
import functools

import pytest
import torch

from eva_fast import native, ops
from eva_fast.layers.inputs import CLIP_MEAN, CLIP_STD
from eva_fast.ops import choose, registry
from eva_fast.ops.embed_tokens import embed_tokens_backward
from eva_fast.ops.gemm import matmul
from eva_fast.ops.linear import linear, weight_gradient
from eva_fast.ops.masked_gather import masked_gather_backward
from eva_fast.ops.native import calls
from eva_fast.ops.packed_attention import (
    packed_attention,
    packed_attention_backward,
    packed_attention_forward,
)
from tests.ops.helpers import (
    SHORT,
    Accuracy,
    check_against_float64,
    check_compiled,
    leaf,
    masks,
    opcheck,
    rows_apart,
)

pytestmark = pytest.mark.skipif(
    not native.available() or registry.interpreted(),
    reason="the C++ kernels are not built, or this process runs Triton's interpreter",
)


@pytest.fixture(params=calls.ISA_NAMES)
def isa(request):
    """Forces the C++ kernels for one instruction set."""
    if calls.set_isa(request.param) != request.param:
        calls.set_isa(None)
        pytest.skip(f"this CPU does not run {request.param}")
    choose.set_kernels("native")
    yield request.param
    choose.set_kernels("auto")
    calls.set_isa(None)


def norm_inputs(dtype):
    width = 83
    row = [leaf(3, 7, width, dtype=dtype) for _ in range(2)]
    parameters = [leaf(width, dtype=dtype) for _ in range(3)]
    return (*row, parameters[0], torch.tensor([0.0, 1.25, 1.25]), *parameters[1:], 1e-6)


def gelu_inputs(dtype):
    return leaf(9, 83, dtype=dtype, scale=3.0), leaf(83, dtype=dtype), "erf"


def quick_inputs(dtype):
    return leaf(9, 83, dtype=dtype, scale=3.0), leaf(83, dtype=dtype), "quick"


def embed_inputs(dtype):
    vectors = [leaf(83, dtype=dtype) for _ in range(2)]
    return (
        leaf(3, 16, 83, dtype=dtype), masks(3, 16, 6), *vectors, leaf(17, 83, dtype=dtype),
        leaf(83, dtype=dtype),
    )  # fmt: skip


def cosine_inputs(dtype):
    return leaf(19, 83, dtype=dtype), leaf(19, 83, dtype=dtype).detach()


def embed_kept_inputs(dtype):
    return (
        leaf(3, 6, 83, dtype=dtype), masks(3, 16, 6), leaf(83, dtype=dtype),
        leaf(17, 83, dtype=dtype).detach(), leaf(83, dtype=dtype),
    )  # fmt: skip


def unshuffle_inputs(dtype):
    return (
        leaf(3, 7, 83, dtype=dtype), masks(3, 16, 6), leaf(83, dtype=dtype),
        leaf(17, 83, dtype=dtype).detach(),
    )  # fmt: skip


def rotary_inputs(dtype, halves=False):
    return leaf(3, 7, 3, 2, 38, dtype=dtype), torch.randn(6, 38), torch.randn(6, 38), halves


CASES = {
    "add_layer_norm": (ops.add_layer_norm, norm_inputs, 2),
    "bias_gelu": (ops.bias_gelu, gelu_inputs, 1),
    "bias_gelu quick": (ops.bias_gelu, quick_inputs, 1),
    "embed_tokens": (ops.embed_tokens, embed_inputs, 1),
    "embed_kept": (ops.embed_kept, embed_kept_inputs, 1),
    "unshuffle_tokens": (ops.unshuffle_tokens, unshuffle_inputs, 1),
    "negative_cosine": (ops.negative_cosine, cosine_inputs, 1),
    "rotary": (ops.rotary, rotary_inputs, 1),
    "rotary, halves": (ops.rotary, functools.partial(rotary_inputs, halves=True), 1),
}


POSITIONED = ("embed_tokens", "embed_kept", "unshuffle_tokens", "rotary", "rotary, halves")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=SHORT.get)
@pytest.mark.parametrize("case", CASES)
def test_row_kernels_against_float64(isa, case, dtype):
    op, make, outputs = CASES[case]
    check_against_float64(op, op.reference, lambda: make(dtype), outputs=outputs)


@pytest.mark.parametrize("case", CASES)
def test_row_kernels_give_the_same_bits_with_any_number_of_threads(case):
    op, make, _ = CASES[case]
    choose.set_kernels("native")
    before = torch.get_num_threads()
    inputs = [
        t.detach().repeat(60, *[1] * (t.ndim - 1)).requires_grad_(t.requires_grad)
        if isinstance(t, torch.Tensor) and t.ndim > 1 and case not in POSITIONED
        else t
        for t in make(torch.float32)
    ]
    if case == "add_layer_norm":
        inputs[3] = None
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = op(*inputs)
            out = out[1] if isinstance(out, tuple) else out
            leaves = [t for t in inputs if isinstance(t, torch.Tensor) and t.requires_grad]
            torch.manual_seed(1)
            found.append([out, *torch.autograd.grad(out, leaves, torch.randn_like(out))])
    finally:
        torch.set_num_threads(before)
        choose.set_kernels("auto")
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


def test_patchify_is_exact_for_every_byte_value(isa):
    images = torch.arange(256, dtype=torch.uint8).repeat(9).view(1, 3, 24, 32)
    for dtype in (torch.float32, torch.bfloat16):
        arguments = (images, 8, CLIP_MEAN, CLIP_STD, dtype)
        torch.testing.assert_close(
            ops.patchify(*arguments), ops.patchify.reference(*arguments), rtol=0, atol=0
        )


# rows, columns, depth: below a tile, edges of tiles, several passes of depth and blocks of columns;
# the last B is more than what is packed at a time, and its last part is smaller
PRODUCTS = [
    (1, 1, 1), (7, 5, 9), (13, 33, 64), (130, 66, 391), (50, 790, 20), (257, 60, 1600),
    (30, 1500, 1601),
]  # fmt: skip


@pytest.mark.parametrize("size", PRODUCTS, ids=str)
@pytest.mark.parametrize("transposed", ["", "a", "b", "ab"])
def test_gemm_against_float64(isa, size, transposed):
    rows, columns, depth = size
    a = torch.randn(depth, rows).t() if "a" in transposed else torch.randn(rows, depth)
    b = torch.randn(columns, depth).t() if "b" in transposed else torch.randn(depth, columns)
    bias = torch.randn(columns)
    accuracy = Accuracy()
    for shift in (None, bias):
        exact = a.double() @ b.double() + (0 if shift is None else shift.double())
        # summed in the order of a plain loop, in float32: what a product may cost in rounding
        steps = (a.t()[:, :, None] * b[:, None, :]).unbind(0) if depth <= 64 else None
        if steps is None:
            plain = torch.addmm(bias, a, b) if shift is not None else a @ b
        else:
            plain = torch.zeros(rows, columns)
            for step in steps:
                plain = plain + step
            plain = plain if shift is None else plain + shift
        error = (matmul(a, b, shift).double() - exact).abs().max().item()
        # the classical bound for a sum in one go; MKL's own error varies with its version
        bound = 2 * max((plain.double() - exact).abs().max().item(), 6e-8 * depth**0.5 * 2)
        assert error <= bound
        accuracy.add("sanity", matmul(a, b, shift), plain, exact)


def test_gemm_takes_slices_of_wider_matrices(isa):
    wide = torch.randn(40, 90)
    a, b = wide[3:30, 5:64], wide[:, 7:30][:, :13].t()
    exact = a[:, :40].double() @ b.t().double()
    found = matmul(a[:, :40], b.t())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    both = torch.randn(6, 8, 10)[:, :, 3]  # no stride of 1
    exact = both.double() @ both.t().double()
    torch.testing.assert_close(matmul(both, both.t()).double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(0, 5, 3), (5, 0, 3), (5, 3, 0)], ids=str)
def test_gemm_of_nothing(isa, size):
    rows, columns, depth = size
    bias = torch.randn(columns)
    found = matmul(torch.randn(rows, depth), torch.randn(depth, columns), bias)
    torch.testing.assert_close(found, bias.expand(rows, columns))


@pytest.mark.parametrize("size", [(300, 70, 500), (400, 1500, 1601)], ids=str)
def test_gemm_gives_the_same_bits_with_any_number_of_threads(size):
    rows, columns, depth = size
    a, b = torch.randn(rows, depth), torch.randn(depth, columns)
    choose.set_kernels("native")
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(matmul(a, b))
    finally:
        torch.set_num_threads(before)
        choose.set_kernels("auto")
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_linear_has_the_gradients_of_pytorch(isa):
    x, weight, bias = leaf(3, 7, 20), leaf(11, 20), leaf(11)
    check_against_float64(linear, torch.nn.functional.linear, lambda: (x, weight, bias))
    assert weight_gradient(x[0], x[0], torch.bfloat16).dtype == torch.bfloat16


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


def test_a_kernel_takes_what_the_library_says(isa):
    """More or fewer arguments than the C++ function has are an error, not corrupted memory."""
    kernel = calls.KERNELS["masked_gather"]
    with pytest.raises(TypeError, match="masked_gather takes 9 arguments .* called with 8"):
        kernel(*[0] * 8)
    with pytest.raises(TypeError, match="masked_gather takes 9 arguments .* called with 10"):
        kernel(*[0] * 10)
    with pytest.raises(ctypes.ArgumentError, match="argument 1"):
        kernel(*[0.5] * 9)
    with pytest.raises(KeyError, match="no kernel 'masked_scatter'"):
        calls.KERNELS["masked_scatter"]
    x, mask = torch.randn(2, 5, 3), masks(2, 4, 2)
    assert torch.equal(ops.masked_gather(x, mask), ops.masked_gather.reference(x, mask))


def test_a_structure_lies_as_the_library_says():
    def heads(*fields):
        return type("Heads", (ctypes.Structure,), {"_fields_": fields})

    names = ("data", "batch", "token", "head")
    right = heads(*((name, ctypes.c_int64) for name in names))
    assert calls.mirrored(right) is right
    small = heads(("data", ctypes.c_int64), *((name, ctypes.c_int32) for name in names[1:]))
    with pytest.raises(RuntimeError, match="Heads lies at 24 bytes in Python, but at 32 in the C"):
        calls.mirrored(small)
    swapped = heads(*((name, ctypes.c_int64) for name in ("data", "token", "batch", "head")))
    with pytest.raises(RuntimeError, match=r"Heads\.token lies at 8 bytes .* at 16"):
        calls.mirrored(swapped)


def test_unknown_instruction_set():
    with pytest.raises(ValueError, match="unknown instruction set 'sse9': choose from"):
        calls.set_isa("sse9")


def test_nothing_to_do(isa):
    x = torch.empty(0, 60)
    vector = torch.ones(60)
    _, y, mean, _ = ops.add_layer_norm(x, None, None, None, vector, vector)
    assert y.shape == (0, 60) and mean.shape == (0,)
    *_, dweight, dbias, _ = ops.add_layer_norm_backward(x, None, x, mean, mean, vector, vector)
    assert dweight.abs().sum() == 0 and dbias.abs().sum() == 0
    assert ops.bias_gelu(x, vector).shape == (0, 60)
    assert ops.bias_gelu_backward(x, x, vector, want_g=True)[2].abs().sum() == 0
    assert ops.negative_cosine(x, x) == 0


@pytest.mark.parametrize("index", [-1, 9, 2**30])
def test_indices_outside_the_image_are_refused(isa, index):
    """Instead of memory that is not the tensor's being read or written."""
    mask = torch.tensor([[0, 8], [0, index]], dtype=torch.int32)
    rows = mask if index > 0 else mask - 1  # a gather takes -1 for CLS
    tokens, vector = torch.randn(2, 10, 8), torch.zeros(8)
    calls = {
        "masked_gather": [
            lambda: ops.masked_gather(tokens, rows),
            lambda: masked_gather_backward(torch.randn(4, 8), rows, 10),
        ],
        "embed_tokens": [
            lambda: ops.embed_tokens(tokens[:, 1:], mask, vector, vector, torch.zeros(10, 8)),
            lambda: embed_tokens_backward(tokens, mask, torch.float32),
        ],
    }
    positions, images = torch.zeros(10, 8), torch.zeros(2, 3, 6, 6, dtype=torch.uint8)
    calls |= {
        "embed_kept": [lambda: ops.embed_kept(tokens[:, :2], mask, vector, positions)],
        "unshuffle_tokens": [
            lambda: ops.unshuffle_tokens(tokens[:, :3], mask, vector, positions),
            lambda: ops.unshuffle_tokens_backward(tokens, mask, torch.float32),
        ],
        "patchify": [lambda: ops.patchify(images, 2, [0] * 3, [1] * 3, torch.float32, mask)],
    }
    lowest = {"masked_gather": -1}
    for op, both in calls.items():
        for call in both:
            message = rf"{op}: (mask|kept) indices must be in {lowest.get(op, 0)}\.\.8, got"
            with pytest.raises(ValueError, match=message):
                call()


def test_codes(isa):
    """Tiles and their edges under the running argmax; rows of logits that no vector fits."""
    if isa == "baseline":
        pytest.skip("products need AVX2")
    z, codebook = torch.randn(150, 20), torch.randn(403, 20)
    found = ops.nearest_code(z, codebook, True)
    for a, b in zip(found, ops.nearest_code.reference(z, codebook, True), strict=True):
        torch.testing.assert_close(a, b)

    def inputs():
        weight = leaf(83, 20, scale=0.2)
        return leaf(19, 20), weight, leaf(83), torch.randint(83, (19,))

    def loss(*arguments):
        return ops.linear_cross_entropy(*arguments)[0]

    check_against_float64(loss, ops.linear_cross_entropy.reference, inputs)
