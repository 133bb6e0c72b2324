"""The picture of a run: its layout, what its colours mean, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image

from eva_fast.objectives.picture import GAP, pca_colours, save_picture

HEAD = 34


def scene(n=3, side=32, grid=(4, 4), width=24, masked=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    patches = grid[0] * grid[1]
    return (
        torch.randint(0, 256, (n, 3, side, side), generator=g, dtype=torch.uint8),
        torch.stack([torch.randperm(patches, generator=g)[:masked].sort()[0] for _ in range(n)]).to(
            torch.int32
        ),
        torch.randn(n, patches, width, generator=g),
        torch.randn(n, patches, width, generator=g),
        grid,
    )


def cells(path, n, side):
    """The drawn squares as [n][4] arrays."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    zoom = -(-208 // side) if side < 208 else 1
    cell = side * zoom
    return [
        [
            pixels[
                HEAD + r * (cell + GAP) : HEAD + r * (cell + GAP) + cell,
                GAP + c * (cell + GAP) : GAP + c * (cell + GAP) + cell,
            ]
            for c in range(4)
        ]
        for r in range(n)
    ]


def test_masked_patches_are_grey_and_the_others_are_the_image(tmp_path):
    images, mask, teacher, prediction, grid = scene()
    save_picture(tmp_path / "deep" / "p.png", images, mask, teacher, prediction, grid)
    for row, (image, masked, *_) in enumerate(cells(tmp_path / "deep" / "p.png", 3, 32)):
        step = image.shape[0] // 4
        for patch in range(16):
            y, x = divmod(patch, 4)
            box = np.s_[y * step : (y + 1) * step, x * step : (x + 1) * step]
            if patch in mask[row].tolist():
                assert (masked[box] == 150).all()
            else:
                assert (masked[box] == image[box]).all()
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["p.png"]


def test_a_perfect_prediction_has_the_teachers_colours_where_it_counts(tmp_path):
    images, mask, teacher, _, grid = scene()
    save_picture(tmp_path / "p.png", images, mask, teacher, 7.0 * teacher, grid)
    for row, (_, _, target, predicted) in enumerate(cells(tmp_path / "p.png", 3, 32)):
        step = target.shape[0] // 4
        for patch in mask[row].tolist():
            y, x = divmod(patch, 4)
            middle = y * step + step // 2, x * step + step // 2
            assert (target[middle] == predicted[middle]).all()
        visible = next(p for p in range(16) if p not in mask[row].tolist())
        y, x = divmod(visible, 4)
        middle = y * step + step // 2, x * step + step // 2
        assert predicted[middle].astype(int).sum() > target[middle].astype(int).sum()


def test_colours_follow_the_teachers_main_directions():
    """Features on a line through three clusters: the first colour channel orders them."""
    direction = torch.nn.functional.normalize(torch.randn(16), dim=0)
    levels = torch.tensor([-1.0, 0.0, 1.0]).repeat(8)
    features = (levels[:, None] * direction)[None] + 0.001 * torch.randn(1, 24, 16)
    red = pca_colours(features, features)[0][0, :, 0].astype(int)
    low, mid, high = (red[levels == v] for v in (-1, 0, 1))
    assert low.max() < mid.min() < mid.max() < high.min() or (
        high.max() < mid.min() < mid.max() < low.min()
    )


def test_an_outlier_does_not_drown_the_rest():
    features = torch.randn(1, 400, 8)
    features[0, 0] *= 1000
    colours = pca_colours(features, features)[0].astype(float)
    assert colours[0, 1:].std(0).min() > 40


def test_the_same_features_give_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        save_picture(tmp_path / name, *scene())
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "sizes",
    [
        dict(n=1, side=14, grid=(1, 1), masked=1),
        dict(width=1),
        dict(width=2, side=224, grid=(16, 16), masked=105),
        dict(side=30, grid=(5, 5)),
        dict(masked=0),
    ],
    ids=["one patch", "one channel", "two channels, large", "odd grid", "nothing masked"],
)
def test_unusual_sizes(tmp_path, sizes):
    save_picture(tmp_path / "p.png", *scene(**sizes))
    assert Image.open(tmp_path / "p.png").size[0] > 4 * 200


def test_boolean_mask_and_broken_features(tmp_path):
    images, mask, teacher, prediction, grid = scene()
    save_picture(tmp_path / "a.png", images, mask, teacher, prediction, grid)
    flags = torch.zeros(3, 16, dtype=torch.bool).scatter_(1, mask.long(), True)
    save_picture(tmp_path / "b.png", images, flags, teacher, prediction, grid)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    prediction[0, 0], teacher[0, 1] = float("nan"), float("inf")
    save_picture(tmp_path / "c.png", images, mask, teacher, prediction, grid)


def test_what_does_not_fit_is_refused(tmp_path):
    images, mask, teacher, prediction, grid = scene()
    path = tmp_path / "p.png"
    with pytest.raises(ValueError, match="uint8"):
        save_picture(path, images.int(), mask, teacher, prediction, grid)
    with pytest.raises(ValueError, match=r"must both be \[3,16,C\]"):
        save_picture(path, images, mask, teacher, prediction[:, :9], grid)
    with pytest.raises(ValueError, match=r"outside 0\.\.15"):
        save_picture(path, images, mask + 16, teacher, prediction, grid)
    with pytest.raises(ValueError, match="3 rows"):
        save_picture(path, images, mask[:2], teacher, prediction, grid)
    assert not path.exists()
