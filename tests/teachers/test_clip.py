"""The CLIP tower: official outputs, masked rows, sizes, positions, dtypes."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from eva_fast import native
from eva_fast.ops import choose
from eva_fast.teachers import Teacher, load_teacher
from eva_fast.teachers.base import CLIP_MEAN, CLIP_STD
from tests.conftest import GOLDEN
from tests.teachers.openai_tower import VisionTransformer, randomise

SIZES = {
    "micro": dict(size=56, patch=14, width=128, heads=2, layers=2, hidden=512, dim=32),
    "odd": dict(size=60, patch=12, width=176, heads=2, layers=3, hidden=279, dim=20),
    "one_layer": dict(size=24, patch=8, width=64, heads=1, layers=1, hidden=100, dim=7),
}


@pytest.fixture(params=SIZES, scope="module")
def saved(request, tmp_path_factory):
    """(path, reference tower in float64, sizes): a random tower in a safetensors file."""
    torch.manual_seed(0)
    sizes = SIZES[request.param]
    tower = randomise(VisionTransformer(**sizes).double())
    path = tmp_path_factory.mktemp("clip") / "tower.safetensors"
    state = {f"visual.{k}": v for k, v in tower.state_dict().items()}
    save_file(state, path, {"heads": str(sizes["heads"])})
    return path, tower, sizes


def normalised(images):
    mean, std = (torch.tensor(t, dtype=torch.float64).view(3, 1, 1) for t in (CLIP_MEAN, CLIP_STD))
    return (images.double() / 255 - mean) / std


def test_official_features(clip_micro):
    tensors, _ = clip_micro
    teacher = load_teacher(GOLDEN / "clip_micro.safetensors")
    features = teacher(tensors["image"])
    assert isinstance(teacher, Teacher)
    assert (teacher.dim, teacher.grid) == (32, (4, 4))
    assert (features - tensors["patch_features"]).abs().max() < 1e-5
    assert features.dtype == torch.float32 and not features.requires_grad


def test_against_multihead_attention(saved):
    path, tower, sizes = saved
    teacher = load_teacher(path, dtype=torch.float64)
    images = torch.randint(0, 256, (2, 3, sizes["size"], sizes["size"]), dtype=torch.uint8)
    with torch.no_grad():
        expected = tower(normalised(images))
    # The file is read as float32, hence not 1e-12.
    torch.testing.assert_close(teacher(images), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kernels", ["torch", "native"])
def test_fused_tower_is_the_plain_one(saved, kernels, masked):
    """In float32, no further from float64 than twice the plain formulation; both activations."""
    if kernels == "native" and not native.available():
        pytest.skip("the native library is not built")
    path, _, sizes = saved
    teacher, exact = load_teacher(path), load_teacher(path, dtype=torch.float64)
    images = torch.randn(2, 3, sizes["size"], sizes["size"])
    patches = math.prod(teacher.grid)
    index = torch.stack([torch.randperm(patches)[: patches // 2].sort()[0] for _ in range(2)])
    choose.set_kernels(kernels)
    try:
        for quick in (True, False):
            for block in (*teacher.tower.transformer.resblocks, *exact.tower.transformer.resblocks):
                block.mlp.quick = quick
            chosen = index if masked else None
            with torch.no_grad():
                wide = exact.tower(images.double(), chosen)
                plain = teacher.tower(images, chosen)
            fused = teacher(images, chosen).view_as(wide)
            error, usual = ((t - wide).abs().max() for t in (fused, plain))
            assert error <= 2 * usual
    finally:
        choose.set_kernels("auto")


@pytest.mark.parametrize("kind", ["bool", "bool_grid", "int32", "int64"])
def test_masked_rows_are_the_full_rows(saved, kind):
    path, _, sizes = saved
    teacher = load_teacher(path, dtype=torch.float64)
    batch, patches = 3, math.prod(teacher.grid)
    images = torch.randn(batch, 3, sizes["size"], sizes["size"])
    index = torch.rand(batch, patches).argsort(1)[:, : patches // 2].sort(1)[0]
    bools = torch.zeros(batch, patches, dtype=torch.bool).scatter_(1, index, True)
    mask = {
        "bool": bools,
        "bool_grid": bools.view(batch, *teacher.grid),
        "int32": index.int(),
        "int64": index,
    }[kind]
    rows = teacher(images, mask)
    assert rows.shape == (batch * (patches // 2), sizes["dim"])
    torch.testing.assert_close(rows, teacher(images)[bools], atol=1e-12, rtol=0)


def test_masked_rows_cost_less(saved):
    """The last block's queries, projection and MLP are computed for masked patches only."""
    from torch.utils.flop_counter import FlopCounterMode

    path, _, sizes = saved
    teacher = load_teacher(path)
    images = torch.randn(1, 3, sizes["size"], sizes["size"])
    counts = []
    for mask in (None, torch.zeros(1, 1, dtype=torch.int32)):
        with FlopCounterMode(display=False) as counter:
            teacher(images, mask)
        counts.append(counter.get_total_flops())
    width, hidden, dim = sizes["width"], sizes["hidden"], sizes["dim"]
    patches, tokens = math.prod(teacher.grid), math.prod(teacher.grid) + 1
    # q and output projection, fc1 and fc2, the tower's projection; QK^T and the weighted sum.
    saved_flops = (patches - 1) * (4 * width**2 + 4 * width * hidden + 2 * width * dim)
    saved_flops += (patches - 1) * 4 * tokens * width
    assert counts[0] - counts[1] == saved_flops


def test_bytes_and_normalised_floats_agree(saved):
    path, _, sizes = saved
    teacher = load_teacher(path)
    images = torch.randint(0, 256, (2, 3, sizes["size"] + 9, sizes["size"]), dtype=torch.uint8)
    torch.testing.assert_close(
        teacher(images), teacher(normalised(images).float()), atol=1e-4, rtol=1e-4
    )


def test_input_is_resized_to_the_grid(saved):
    path, tower, sizes = saved
    teacher = load_teacher(path, dtype=torch.float64)
    images = torch.randn(2, 3, 64, 80).double()
    resized = F.interpolate(images, (sizes["size"],) * 2, mode="bicubic", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images), tower(resized), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [(6, 6), (3, 7), 2])
def test_another_grid_interpolates_the_positions(saved, grid):
    path, tower, sizes = saved
    teacher = load_teacher(path, grid=grid, dtype=torch.float64)
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    size = (rows * sizes["patch"], columns * sizes["patch"])
    assert teacher.grid == (rows, columns) and teacher.input_size == size
    images = torch.randn(1, 3, *size).double()
    side = sizes["size"] // sizes["patch"]
    table = tower.positional_embedding.detach()
    patches = table[1:].view(1, side, side, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, (rows, columns), mode="bicubic", antialias=True)
    changed = VisionTransformer(**sizes).double().eval()
    changed.positional_embedding = torch.nn.Parameter(torch.empty(1 + rows * columns, len(table.T)))
    state = tower.state_dict()
    state["positional_embedding"] = torch.cat([table[:1], patches[0].flatten(1).T])
    changed.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images), changed.double()(images), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(saved, dtype):
    path, _, sizes = saved
    exact, teacher = load_teacher(path), load_teacher(path, dtype=dtype)
    images = torch.randint(0, 256, (2, 3, sizes["size"], sizes["size"]), dtype=torch.uint8)
    features = teacher(images)
    assert features.dtype == torch.float32
    assert next(teacher.tower.parameters()).dtype == dtype
    cosine = F.cosine_similarity(features, exact(images), dim=-1)
    assert cosine.min() > 1 - 8 * torch.finfo(dtype).eps


def test_teacher_is_frozen(saved):
    teacher = load_teacher(saved[0])
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert all(not p.requires_grad for p in teacher.parameters()) and list(teacher.parameters())
    assert set(teacher.state_dict()) == {"feature_mean", "feature_std", "is_whitened"}


@pytest.mark.parametrize(
    "mask, message",
    [
        (torch.tensor([[True, False] * 8, [True, True] * 8]), "same number of masked patches"),
        (torch.zeros(2, 16, dtype=torch.bool), "at least one"),
        (torch.zeros(2, 15, dtype=torch.bool), r"\[2,16\]"),
        (torch.full((2, 3), 16, dtype=torch.int32), "0..15"),
        (torch.full((2, 3), -1, dtype=torch.int32), "0..15"),
        (torch.zeros(3, 3, dtype=torch.int32), r"int32 \[2,K\]"),
        (torch.zeros(2, 0, dtype=torch.int32), "at least one"),
        (torch.zeros(2, 16), "bool"),
    ],
    ids=["ragged", "empty", "patches", "high", "low", "batch", "no_index", "float"],
)
def test_bad_masks(clip_micro, mask, message):
    teacher = load_teacher(GOLDEN / "clip_micro.safetensors")
    with pytest.raises(ValueError, match=message):
        teacher(clip_micro[0]["image"][:2], mask)


def test_bad_images():
    teacher = load_teacher(GOLDEN / "clip_micro.safetensors")
    with pytest.raises(ValueError, match=r"\[B,3,H,W\]"):
        teacher(torch.zeros(2, 1, 56, 56))
