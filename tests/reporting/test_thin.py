"""Thinned columns against the same, one group after the other."""

import numpy as np

from eva_fast.reporting.thin import MOST_GAPS, thin


def test_a_short_log_stays_as_it_is():
    step, loss = np.arange(1.0, 8), np.array([3, 2, np.nan, 1, 5, 4, 0.5])
    found = thin({"step": step, "loss": loss}, points=10)
    assert found.lines == 1
    np.testing.assert_array_equal(found.mean["step"], step)
    for kind in (found.mean, found.least, found.most):
        np.testing.assert_array_equal(kind["loss"], loss)


def test_groups_of_lines():
    g = np.random.default_rng(0)
    loss = g.normal(size=1003)
    loss[g.random(1003) < 0.3] = np.nan
    loss[100:110] = np.nan  # a whole group
    found = thin({"step": np.arange(1003.0), "loss": loss}, points=101)
    assert found.lines == 10
    groups = [loss[i : i + 10] for i in range(0, 1003, 10)]
    known = [group[~np.isnan(group)] for group in groups]
    for kind, reduce in ((found.mean, np.mean), (found.least, np.min), (found.most, np.max)):
        wanted = [reduce(group) if len(group) else np.nan for group in known]
        np.testing.assert_allclose(kind["loss"], wanted, rtol=1e-12)
    assert np.isnan(found.mean["loss"][10])


def test_a_million_lines_keep_their_spike():
    loss = np.zeros(1_000_000)
    loss[654_321] = 7
    found = thin({"step": np.arange(1e6), "loss": loss})
    assert len(found.mean["loss"]) <= 600 and found.most["loss"].max() == 7
    assert found.lines == 1667


def test_a_run_that_went_back_has_a_gap_there():
    step = np.array([10.0, 20, 30, 15, 25, 35])
    found = thin({"step": step, "loss": step}, points=100)
    np.testing.assert_array_equal(found.mean["loss"], [10, 20, 30, np.nan, 15, 25, 35])
    found = thin({"step": step, "loss": step}, points=3)
    np.testing.assert_array_equal(found.mean["loss"], [15, 30, np.nan, 20, 35])


def test_a_run_that_only_goes_back_is_bounded():
    step = np.ones(MOST_GAPS * 100)
    assert len(thin({"step": step}, points=100).mean["step"]) == 100
