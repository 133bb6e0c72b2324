"""Standard errors of accuracies, and the sentences that come of them."""

from pathlib import Path

import numpy as np
import pytest

from eva_fast.evaluation import Evaluation, Scores
from eva_fast.evaluation.table import to_text
from eva_fast.evaluation.verdict import binomial_error, verdicts


def row(features, knn, error=2.0):
    return Scores(features=features, dim=3, accuracy={"knn": knn}, error={"knn": error})


def test_the_error_is_the_spread_of_accuracies_that_are_drawn():
    drawn = np.random.default_rng(0).binomial(551, 0.42, 20_000) / 551
    assert binomial_error(42.0, 551) == pytest.approx(100 * drawn.std(), rel=0.02)
    assert binomial_error(100.0, 10) == binomial_error(0.0, 10) == 0


def test_a_student_below_its_random_values_and_below_pixels():
    found = verdicts(
        [row("student", 30.0), row("random init", 36.0), row("8x8 pixels", 31.0),
         row("teacher hog", 90.0)], ["knn"],
    )  # fmt: skip
    assert found == [
        "the student is below its own random initial values on k-NN: 30.0 against 36.0 %, "
        "6.0 ± 2.8 points",
        "the student is below 8x8 pixels on k-NN: 30.0 against 31.0 %, 1.0 ± 2.8 points, "
        "which may be chance",
    ]


def test_a_student_above_all_is_told_nothing():
    assert verdicts([row("student", 40.0), row("random init", 36.0)], ["knn"]) == []


def test_the_table_ends_with_the_sentences():
    rows = (row("student", 30.0), row("random init", 36.0))
    result = Evaluation(
        data="x", classes=("a", "b"), train=4, val=2, majority=50.0, weights=Path("w"), sizes={},
        probes=("knn",), rows=rows, verdicts=tuple(verdicts(rows, ["knn"])), seconds=0.1,
    )  # fmt: skip
    text = to_text(result, width=120)
    assert "30.0 ± 2.0" in text and "36.0 ± 2.0" in text and "binomial standard error" in text
    assert "below its own random initial values" in text
