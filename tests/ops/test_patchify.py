import pytest
import torch
import torch.nn.functional as F

from eva_fast import ops
from eva_fast.ops.patchify import aligned_columns
from tests.ops.helpers import Accuracy, opcheck, with_dtypes

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def plain(images, patch_size, dtype):
    """Normalise as torchvision does, then unfold."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    mean, std = (torch.tensor(v, dtype=compute)[:, None, None] for v in (MEAN, STD))
    normalised = (images.to(compute) / 255 - mean) / std
    return F.unfold(normalised, patch_size, stride=patch_size).transpose(1, 2).to(dtype)


CASES = {
    "ViT/14, 28 x 42": (2, 28, 42, 14),
    "ViT/16, 32 x 32": (1, 32, 32, 16),
    "one pixel a patch": (2, 3, 5, 1),
    "several programs a strip": (1, 14, 700, 14),
}


@pytest.mark.parametrize(("case", "dtype"), with_dtypes(CASES))
def test_against_float64(kernels, case, dtype):
    batch, height, width, patch_size = CASES[case]
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    found = ops.patchify(images, patch_size, MEAN, STD, dtype)
    accuracy = Accuracy()
    accuracy.add(
        case, found, plain(images, patch_size, dtype), plain(images, patch_size, torch.float64)
    )
    accuracy.check()


def test_equals_the_patch_convolution(kernels):
    images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    weight = torch.randn(20, 3, 14, 14)
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    expected = F.conv2d((images / 255 - mean) / std, weight, stride=14).flatten(2).mT
    found = ops.patchify(images, 14, MEAN, STD) @ weight.flatten(1).T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("case", "dtype"), with_dtypes(CASES, in_all=1))
def test_kept_patches_alone(kernels, case, dtype):
    """Bit for bit the rows of all patches that `kept` names, in its order."""
    batch, height, width, patch_size = CASES[case]
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    rows = ops.patchify(images, patch_size, MEAN, STD, dtype)
    kept = torch.rand(rows.shape[:2]).argsort(1)[:, : -(-rows.shape[1] // 3)].int()
    found = ops.patchify(images, patch_size, MEAN, STD, dtype, kept)
    expected = torch.stack([r[k.long()] for r, k in zip(rows, kept)])
    assert torch.equal(found, expected)
    none = torch.empty(batch, 0, dtype=torch.int32)
    assert ops.patchify(images, patch_size, MEAN, STD, dtype, none).shape[1] == 0


@pytest.mark.parametrize("some", [False, True], ids=["all patches", "kept ones"])
@pytest.mark.parametrize(("patch_size", "columns"), [(14, 592), (14, 588), (1, 4), (2, 14)])
def test_rows_that_end_in_zeros(kernels, patch_size, columns, some):
    images = torch.randint(0, 256, (2, 3, 28, 42), dtype=torch.uint8)
    kept = torch.tensor([[5, 0], [2, 3]], dtype=torch.int32) if some else None
    narrow = ops.patchify(images, patch_size, MEAN, STD, torch.bfloat16, kept)
    found = ops.patchify(images, patch_size, MEAN, STD, torch.bfloat16, kept, columns)
    assert torch.equal(found, F.pad(narrow, (0, columns - narrow.shape[2])))


def test_where_rows_are_widened():
    assert aligned_columns(14, torch.bfloat16, "cuda") == 592
    assert aligned_columns(16, torch.float16, "cuda") == 768
    assert aligned_columns(14, torch.float32, "cuda") == 588
    assert aligned_columns(14, torch.bfloat16, "cpu") == 588


def test_strided_images_and_no_images(kernels):
    images = torch.randint(0, 256, (2, 3, 28, 56), dtype=torch.uint8)
    window = images[:, :, :, 14:42]
    found = ops.patchify(window, 14, MEAN, STD)
    torch.testing.assert_close(found, ops.patchify(window.contiguous(), 14, MEAN, STD))
    assert ops.patchify(images[:0], 14, MEAN, STD).shape == (0, 8, 588)


def test_opcheck(kernels):
    images = torch.randint(0, 256, (1, 3, 4, 6), dtype=torch.uint8)
    arguments = (images, 2, MEAN, STD, torch.bfloat16)
    opcheck(torch.ops.eva_fast.patchify.default, arguments)
    kept = torch.tensor([[4, 1]], dtype=torch.int32)
    opcheck(torch.ops.eva_fast.patchify.default, (*arguments, kept))


def test_compiled():
    images = torch.randint(0, 256, (1, 3, 4, 6), dtype=torch.uint8)
    arguments = (images, 2, MEAN, STD, torch.bfloat16)
    torch._dynamo.reset()
    compiled = torch.compile(ops.patchify, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), ops.patchify(*arguments))


BAD = {
    "images has shape": lambda i: (i[0], 14, MEAN, STD),
    "images has dtype": lambda i: (i.float(), 14, MEAN, STD),
    "images has strides": lambda i: (i.transpose(2, 3), 14, MEAN, STD),
    "patch_size 13 divides": lambda i: (i, 13, MEAN, STD),
    "mean and std have 1 and 3 values": lambda i: (i, 14, (0.5,), STD),
    "dtype torch.int32 is not": lambda i: (i, 14, MEAN, STD, torch.int32),
    "columns is 603": lambda i: (i, 14, MEAN, STD, torch.half, None, 603),
    "columns is 587": lambda i: (i, 14, MEAN, STD, torch.half, None, 587),
    "kept has dtype": lambda i: (i, 14, MEAN, STD, torch.half, torch.zeros(1, 2).long()),
    "kept has shape": lambda i: (i, 14, MEAN, STD, torch.half, torch.zeros(2, 2).int()),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    with pytest.raises(ValueError, match=f"patchify: .*{message}"):
        ops.patchify(*BAD[message](torch.zeros(1, 3, 28, 28, dtype=torch.uint8)))
