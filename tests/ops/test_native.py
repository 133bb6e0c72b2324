"""The C++ kernels of rows, and what all kernels share, at every instruction set this CPU has."""

import ctypes
import functools

import pytest
import torch

from eva_fast import ops
from eva_fast.layers.inputs import CLIP_MEAN, CLIP_STD
from eva_fast.ops import choose
from eva_fast.ops.embed_tokens import embed_tokens_backward
from eva_fast.ops.masked_gather import masked_gather_backward
from eva_fast.ops.native import calls
from tests.ops.helpers import (
    SHORT,
    check_against_float64,
    leaf,
    masks,
    needs_native,
)

pytestmark = needs_native


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
