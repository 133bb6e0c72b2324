"""The cost model where it can be checked: the step on this CPU, predicted and measured."""

import pytest
import torch

from bench.conftest import state_of
from bench.kit import Kit
from bench.prediction import FORMULATIONS, compare
from bench.shapes import check_shape, prediction_shapes


def pytest_generate_tests(metafunc):
    state = state_of(metafunc.config)
    shapes = prediction_shapes(state.quick) if state.timed else [check_shape()]
    cases = [pytest.param(f, s, id=f"{f}-{s.id}") for s in shapes for f in FORMULATIONS]
    metafunc.parametrize(("formulation", "shape"), cases)


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks the measured CPU's predictions")
def test_prediction(formulation, shape, bench_state):
    if bench_state.timed:
        bench_state.settings()
    kit = Kit("prediction", bench_state.timed, bench_state.quick)
    found = compare(
        formulation, shape, kit, rounds=(3 if bench_state.quick else 7) if bench_state.timed else 1
    )
    assert found["measured_seconds"] > 0 and found["predicted_seconds"] > 0
    if bench_state.timed:
        bench_state.predictions.append(found)
