"""The order of samples: bijective, spread evenly, faithful to weights, the same everywhere."""

import numpy as np
import pytest

from eva_fast.data.loader.order import Order, permute
from eva_fast.data.samples.seeds import mix64, mix64_array, sample_seed, sample_seeds
from eva_fast.data.sources.base import Part


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 65, 1603, 70_001])
def test_permute_is_a_bijection(count):
    for key in (0, 12345):
        values = permute(count, key, np.arange(count))
        assert (np.sort(values) == np.arange(count)).all()


def test_permute_evaluates_any_positions():
    whole = permute(1000, 7, np.arange(1000))
    some = np.array([999, 0, 5, 5, 31])
    assert (permute(1000, 7, some) == whole[some]).all()
    assert permute(30_000_000, 1, np.array([29_999_999])) < 30_000_000


def test_permute_sends_every_element_everywhere():
    """Chi-square of where each of 6 elements goes under 6,000 keys; 25 degrees of freedom."""
    counts = np.zeros((6, 6))
    for key in range(6000):
        counts[np.arange(6), permute(6, mix64(key), np.arange(6))] += 1
    assert ((counts - 1000) ** 2 / 1000).sum() < 60  # p < 1e-4 beyond


def test_neighbours_are_not_kept_together():
    values = permute(10_000, 3, np.arange(10_000))
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.05
    assert (np.abs(np.diff(values)) == 1).mean() < 0.002


def test_seeds_agree_and_differ():
    ids = np.array([0, 1, 2, 2**40])
    seeds = sample_seeds(5, ids, 3)
    assert [int(s) for s in seeds] == [sample_seed(5, int(i), 3) for i in ids]
    assert int(mix64_array(np.array([9], np.uint64))[0]) == mix64(9)
    # splitmix64's published first output for state 0
    assert mix64(0) == 0xE220A8397B1DCDAF
    everything = {sample_seed(s, i, v) for s in range(5) for i in range(20) for v in range(20)}
    assert len(everything) == 2000


def test_an_epoch_holds_every_image_once_and_epochs_differ():
    order = Order([Part(0, 100, 100)], seed=1)
    epochs = [order.samples(epoch, np.arange(100)) for epoch in range(3)]
    for epoch, (ids, views) in enumerate(epochs):
        assert sorted(ids) == list(range(100)) and (views == epoch).all()
    assert (epochs[0][0] != epochs[1][0]).any()
    assert (epochs[0][0] != Order([Part(0, 100, 100)], seed=2).samples(0, np.arange(100))[0]).any()


def test_weights_give_exact_shares_and_use_every_image_equally():
    order = Order([Part(0, 10, 35), Part(10, 100, 75)], seed=0)
    seen = np.zeros((2, 110), int)
    for epoch in range(4):
        ids, views = order.samples(epoch, np.arange(110))
        assert (ids < 10).sum() == 35
        for image_id, view in zip(ids, views):
            seen[0, image_id] += 1
            seen[1, image_id] += 1 << view
    # 140 draws of 10 images: each 14 times, each time in another view
    assert (seen[0, :10] == 14).all() and (seen[1, :10] == (1 << 14) - 1).all()
    # 300 draws of 100 images: each 3 times
    assert (seen[0, 10:] == 3).all() and (seen[1, 10:] == 7).all()
