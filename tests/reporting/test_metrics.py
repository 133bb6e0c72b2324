"""A run's log as columns: whatever stands in it, and what befell the run."""

import json
import math
import os

import numpy as np
import pytest

from eva_fast.errors import UsageError
from eva_fast.reporting.metrics import MOST_COLUMNS, read_lines, read_metrics
from tests.reporting.runs import line


@pytest.fixture
def read(tmp_path):
    def read(*lines, end="\n"):
        texts = [text if isinstance(text, str) else json.dumps(text) for text in lines]
        (tmp_path / "metrics.jsonl").write_text("\n".join(texts) + end)
        return read_metrics(tmp_path / "metrics.jsonl")

    return read


def test_columns_hold_each_number_and_nan_where_a_line_has_none(read):
    found = read({"step": 1, "loss": 0.5}, {"step": 2, "loss": None, "late": 3}, {"step": 4})
    assert len(found) == 3
    np.testing.assert_array_equal(found.columns["step"], [1, 2, 4])
    np.testing.assert_array_equal(found.columns["loss"], [0.5, math.nan, math.nan])
    np.testing.assert_array_equal(found.columns["late"], [math.nan, 3, math.nan])
    assert found.last("step") == 4 and found.last("loss") is None and found.last("none") is None
    assert found.has("loss") and not found.has("none") and found.median("loss") == 0.5


def test_what_is_no_plain_number(read):
    (step,) = (
        {"step": 1, "waits": [0.1, 0.3], "none": [], "words": ["a"], "text": "x", "truth": True,
         "deep": {"a": 1}, "large": 10**400, "infinite": math.inf},
    )  # fmt: skip
    found = read(step)
    assert found.columns["waits"] == [0.3]
    assert np.isnan(found.columns["large"][0]) and np.isnan(found.columns["infinite"][0])
    assert found.columns.keys() == {"step", "waits", "large", "infinite"}


def test_lines_that_are_none(read):
    bad = ["", "{", "[]", "3", '{"loss": 1}', '{"step": true}', '{"step": -1}', "[" * 100_000]
    found = read({"step": 1}, *bad, {"step": 2}, "x" * (3 << 20), {"step": 3})
    assert found.columns["step"].tolist() == [1, 2, 3]
    assert found.unreadable == len(bad) + 1 and not found.half_written


def test_a_last_line_that_is_being_written(read):
    found = read({"step": 1, "loss": 2}, '{"step": 2, "lo', end="")
    assert len(found) == 1 and found.half_written and found.unreadable == 0
    assert read({"step": 1}, {"step": 2}, end="").half_written is False


def test_no_log_yet(tmp_path, read):
    for found in (read_metrics(tmp_path / "none.jsonl"), read(end="")):
        assert len(found) == 0 and not found.has("loss") and found.last("step") is None
        assert not len(found.seconds())
        assert found.restarts() == found.rewinds() == found.skipped() == []
    assert read_lines(tmp_path / "none.jsonl") == []


def test_what_is_no_file_is_an_error_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UsageError, match="metrics.jsonl"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_many_names_are_bounded(read):
    found = read({"step": 1, **{f"n{i}": i for i in range(1000)}})
    assert len(found.columns) == MOST_COLUMNS and found.columns["step"] == [1]


def test_parts_of_a_run_add_up(read):
    """Killed after step 20 and gone on from there."""
    found = read(*(line(s, seconds=t) for s, t in [(10, 5.0), (20, 10.0), (30, 6.0), (40, 11.0)]))
    assert found.seconds().tolist() == [5, 10, 16, 21]
    assert found.restarts() == [20]


def test_skipped_steps_and_ways_back(read):
    steps = [(10, 0), (20, 4), (30, 14), (20, 0), (30, 2)]
    found = read(*(line(s, skipped_steps=n, seconds=i) for i, (s, n) in enumerate(steps)))
    assert found.rewinds() == [(30, 20)]
    assert found.skipped() == [(1, 4), (2, 10), (4, 2)]
