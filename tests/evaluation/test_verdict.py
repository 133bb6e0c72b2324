"""Standard errors of accuracies, and the sentences that come of them."""

import io

import numpy as np
import pytest
from rich.console import Console

from eva_fast.evaluation import print_table
from eva_fast.evaluation.verdict import binomial_error, verdicts


def row(features, knn, error=2.0):
    return {"features": features, "dim": 3, "knn": knn, "knn_error": error}


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
    results = [row("student", 30.0), row("random init", 36.0)]
    result = {
        "data": "x", "classes": ["a", "b"], "train": 4, "val": 2, "majority": 50.0,
        "weights": "w", "probes": ["knn"], "results": results,
        "verdicts": verdicts(results, ["knn"]),
    }  # fmt: skip
    console = Console(record=True, width=120, file=io.StringIO())
    print_table(result, console)
    text = console.export_text()
    assert "30.0 ± 2.0" in text and "36.0 ± 2.0" in text and "binomial standard error" in text
    assert "below its own random initial values" in text
