"""HOG against a slow computation pixel by pixel in numpy."""

import math

import numpy as np
import pytest
import torch

from eva_fast.teachers import load_teacher
from eva_fast.teachers.base import CLIP_MEAN, CLIP_STD


def slow_hog(image, grid):
    """[N,108] of one uint8 image [3,H,W]: loops over pixels, float64, angles from math.atan2."""
    height, width = image.shape[1:]
    rows, columns = grid[0] * 2, grid[1] * 2
    cells = np.zeros((3, 9, rows, columns))
    for c in range(3):
        padded = np.pad(image[c].astype(float), 1, mode="reflect")
        for y in range(height):
            for x in range(width):
                p = padded[y : y + 3, x : x + 3]
                gx = p[0, 0] + 2 * p[1, 0] + p[2, 0] - p[0, 2] - 2 * p[1, 2] - p[2, 2]
                gy = p[0, 0] + 2 * p[0, 1] + p[0, 2] - p[2, 0] - 2 * p[2, 1] - p[2, 2]
                angle = math.atan2(gx, gy) % math.pi  # unsigned
                bin_ = min(int(angle / math.pi * 9), 8)
                cells[c, bin_, y * rows // height, x * columns // width] += math.hypot(gx, gy)
    norm = np.sqrt((cells**2).sum(1, keepdims=True))
    cells = cells / np.maximum(norm, 1e-12)
    out = [
        cells[:, :, 2 * r : 2 * r + 2, 2 * k : 2 * k + 2].reshape(-1)
        for r in range(grid[0])
        for k in range(grid[1])
    ]
    return np.stack(out)


def drawing(height, width):
    """Flat colours with straight edges, where many gradients lie exactly on a bin's border."""
    image = torch.full((3, height, width), 255, dtype=torch.uint8)
    image[:, height // 4 : height // 2, 3 : width - 2] = torch.tensor([200, 30, 0])[:, None, None]
    image[1, :, width // 2 :] = 17
    image[2].fill_diagonal_(90)
    return image


@pytest.mark.parametrize(
    "grid, size",
    [((4, 4), (64, 64)), ((3, 5), (42, 70)), ((2, 3), (26, 39)), ((3, 3), (20, 25))],
    ids=["patch16", "patch14", "patch13", "not_a_multiple"],
)
@pytest.mark.parametrize("content", ["noise", "drawing"])
def test_against_pixel_loops(grid, size, content):
    generator = torch.Generator().manual_seed(3)
    noise = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    image = noise if content == "noise" else drawing(*size)
    features = load_teacher("hog", grid=grid)(image[None])
    assert features.shape == (1, grid[0] * grid[1], 108)
    expected = slow_hog(image.numpy(), grid)
    np.testing.assert_allclose(features[0].numpy(), expected, atol=2e-6)


def test_matches_maskfeat_on_its_own_patches():
    """Cells of 8 pixels in patches of 16: unfolded histograms as MaskFeat writes them."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    x = torch.nn.functional.pad(images.double(), (1, 1, 1, 1), mode="reflect")
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=torch.float64)
    gx = torch.nn.functional.conv2d(x, sobel.expand(3, 1, 3, 3), groups=3)
    gy = torch.nn.functional.conv2d(x, sobel.T.expand(3, 1, 3, 3), groups=3)
    bins = (torch.atan2(gx, gy) / math.pi * 9).floor().long() % 9
    hist = torch.zeros(2, 3, 9, 48, 48, dtype=torch.float64)
    hist.scatter_(2, bins[:, :, None], torch.hypot(gx, gy)[:, :, None])
    hist = hist.unflatten(4, (6, 8)).unflatten(3, (6, 8)).sum((4, 6))
    hist = torch.nn.functional.normalize(hist, dim=2).flatten(1, 2).permute(0, 2, 3, 1)
    expected = hist.unfold(1, 2, 2).unfold(2, 2, 2).flatten(1, 2).flatten(2)
    features = load_teacher("hog", grid=3)(images)
    torch.testing.assert_close(features.double(), expected, atol=1e-6, rtol=0)


def test_bytes_and_normalised_floats_fall_into_the_same_bins():
    images = torch.stack([drawing(56, 56), drawing(56, 56).flip(2)])
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (CLIP_MEAN, CLIP_STD))
    teacher = load_teacher("hog", grid=(4, 4))
    torch.testing.assert_close(teacher((images / 255 - mean) / std), teacher(images))


def test_masked_rows_and_cells():
    teacher = load_teacher("hog", grid=(4, 4), dtype=torch.bfloat16)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    full = teacher(images)
    assert full.dtype == torch.float32 and teacher.compute_dtype == torch.float32
    mask = torch.tensor([[0, 3, 15], [1, 2, 9]], dtype=torch.int32)
    expected = torch.cat([full[0, [0, 3, 15]], full[1, [1, 2, 9]]])
    assert torch.equal(teacher(images, mask), expected)
    # Each of the 3 x 4 histograms of a patch has length one.
    norms = full.view(2, 16, 3, 9, 4).norm(dim=3)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_a_batch_is_its_images():
    """A batch larger than what is computed at a time."""
    teacher = load_teacher("hog", grid=(4, 4))
    images = torch.randint(0, 256, (30, 3, 56, 56), dtype=torch.uint8)
    assert torch.equal(teacher(images), torch.cat([teacher(x[None]) for x in images]))


def test_a_flat_image_has_no_direction():
    features = load_teacher("hog", grid=2)(torch.full((1, 3, 16, 16), 77, dtype=torch.uint8))
    assert torch.equal(features, torch.zeros(1, 4, 108))


def test_errors():
    with pytest.raises(ValueError, match="needs grid"):
        load_teacher("hog")
    with pytest.raises(ValueError, match="a pixel a patch"):
        load_teacher("hog", grid=16)(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
