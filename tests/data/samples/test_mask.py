"""Block-wise masks: statistics of the official generator, exact counts, one result everywhere."""

import numpy as np
import pytest
import torch

from eva_fast import native
from eva_fast.data import BlockMasker
from tests.golden.mask_stats import edges

GRIDS = [
    ((16, 16), 105, 16),
    ((4, 4), 6, 16),
    ((4, 4), 6, 1),
    ((6, 6), 14, 2),
    ((8, 8), 26, 4),
    ((1, 7), 3, 1),
    ((5, 9), 45, 3),
    ((1, 1), 1, 1),
    ((40, 30), 700, 30),
]
grids = pytest.mark.parametrize(
    "grid, count, min_block", GRIDS, ids=[f"{g[0]}x{g[1]}-{c}-{m}" for g, c, m in GRIDS]
)


def seeds(n, start=0):
    return np.random.default_rng(start).integers(0, 2**64, n, dtype=np.uint64)


@grids
def test_exact_count_ascending_and_in_range(grid, count, min_block):
    indices = BlockMasker(grid, count, min_block).indices(seeds(200))
    assert indices.shape == (200, count) and indices.dtype == np.int32
    assert (np.diff(indices, axis=1) > 0).all()
    assert indices.min() >= 0 and indices.max() < grid[0] * grid[1]


@pytest.mark.skipif(not native.available(), reason="the native library is not built")
@grids
def test_native_and_numpy_give_the_same_masks(grid, count, min_block, monkeypatch):
    masker = BlockMasker(grid, count, min_block)
    keys = np.concatenate([seeds(300, 3), np.array([0, 1, 2**63, 2**64 - 1], np.uint64)])
    built = masker.indices(keys)
    monkeypatch.setattr(native, "library", lambda: None)
    assert np.array_equal(masker.indices(keys), built)


def test_a_mask_is_a_function_of_its_seed_alone():
    masker, keys = BlockMasker(), seeds(50)
    together = masker.indices(keys)
    alone = np.concatenate([masker.indices(keys[i : i + 1]) for i in reversed(range(50))])[::-1]
    assert np.array_equal(together, alone)
    assert np.array_equal(masker.indices(keys), together)


def test_numpy_version_serves_where_nothing_is_built(monkeypatch):
    expected = BlockMasker().indices(seeds(20))
    monkeypatch.setattr(native, "library", lambda: None)
    assert np.array_equal(BlockMasker().indices(seeds(20)), expected)


def test_calling_advances_and_starts_from_the_seed():
    first, second = BlockMasker(seed=5), BlockMasker(seed=5)
    whole = first(30)
    assert whole.shape == (30, 16, 16) and whole.dtype == torch.bool
    assert (whole.sum((1, 2)) == 105).all()
    assert torch.equal(whole, torch.cat([second(10), second(20)]))
    assert not torch.equal(whole, first(30))
    assert not torch.equal(whole, BlockMasker(seed=6)(30))
    assert BlockMasker(seed=-1)(0).shape == (0, 16, 16)


def test_largest_block(monkeypatch):
    """As the official generator has it: of a rectangle at most `max_block` patches are wanted, and more
    are not taken; without a bound the count is the bound."""
    keys = seeds(300, 7)
    small, whole = BlockMasker(max_block=8, min_block=4), BlockMasker(min_block=4)
    masks = small.indices(keys)
    assert masks.shape == (300, 105) and (np.diff(masks, axis=1) > 0).all()

    def outline(indices):
        flat = np.zeros((len(indices), 256), bool)
        np.put_along_axis(flat, indices.astype(np.int64), True, axis=1)
        return edges(flat.reshape(-1, 16, 16)).mean()

    assert outline(masks) > 1.3 * outline(whole.indices(keys))
    assert np.array_equal(
        BlockMasker(min_block=4, max_block=105).indices(keys), whole.indices(keys)
    )
    one = BlockMasker((9, 9), 5, 1, max_block=1).indices(keys)
    assert one.shape == (300, 5)
    many = [small.indices(keys), BlockMasker((7, 9), 30, 16, max_block=6).indices(keys), one]
    monkeypatch.setattr(native, "library", lambda: None)
    assert np.array_equal(small.indices(keys), many[0])
    assert np.array_equal(BlockMasker((7, 9), 30, 16, max_block=6).indices(keys), many[1])
    assert np.array_equal(BlockMasker((9, 9), 5, 1, max_block=1).indices(keys), many[2])


def test_a_bounded_mask_is_the_official_generator_s():
    """The mean outline of masks by the official rule, written anew, that need no topping up."""
    rng = np.random.default_rng(0)
    count, least, most, n = 40, 4, 20, 800

    def official():
        mask, missing = np.zeros((10, 10), bool), count
        while missing:
            room, found = min(missing, most), 0
            for _ in range(10):
                area = rng.uniform(min(least, room), max(least, room))
                aspect = np.exp(rng.uniform(np.log(0.3), -np.log(0.3)))
                h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
                if h < 10 and w < 10:
                    y, x = rng.integers(0, 11 - h), rng.integers(0, 11 - w)
                    fresh = h * w - mask[y : y + h, x : x + w].sum()
                    if 0 < fresh <= room:
                        mask[y : y + h, x : x + w], found = True, fresh
                        break
            if not found:
                return mask
            missing -= found
        return mask

    theirs = np.stack([official() for _ in range(n)])
    full = theirs[theirs.sum((1, 2)) == count]
    ours = BlockMasker((10, 10), count, least, max_block=most)(n).numpy()
    expected, found = edges(full), edges(ours)
    assert abs(found.mean() / expected.mean() - 1) < 0.03


def test_top_up_alone_grows_from_one_patch():
    """On a single row no rectangle fits (it must be lower than the grid): all is topped up."""
    masks = BlockMasker((1, 12), 4, 1)(500).numpy()
    assert (edges(masks) <= 2).all()
    assert (masks.mean(0) > 0.1).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(grid=(0, 4), count=1), "grid must have"),
        (dict(grid=(2000, 2000), count=1), "grid must have"),
        (dict(grid=(4, 4), count=0), "1 to 16"),
        (dict(grid=(4, 4), count=17), "1 to 16"),
        (dict(min_block=0), "min_block"),
        (dict(max_block=0), "max_block"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BlockMasker(**arguments)


def test_bad_calls():
    with pytest.raises(ValueError, match="negative"):
        BlockMasker()(-1)
    with pytest.raises(ValueError, match="one-dimensional"):
        BlockMasker().indices(np.zeros((2, 2), np.uint64))
