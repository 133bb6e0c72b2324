"""The whole step, teacher, optimiser, input, checkpoints and the first step's latency."""

import importlib

import pytest

from bench.conftest import state_of
from bench.kit import Kit
from bench.shapes import check_shape, other_shapes, step_shapes

SUBJECTS = ("step", "teacher", "optimizer", "input", "checkpoint", "first_step")


def pytest_generate_tests(metafunc):
    state = state_of(metafunc.config)
    cases = []
    for name in SUBJECTS:
        if not state.timed:
            shapes = [check_shape()]
        elif name == "step":
            shapes = step_shapes(state.quick)
        else:
            shapes = other_shapes(state.quick)
        for mode in importlib.import_module(f"bench.{name}").MODES:
            cases += [pytest.param(name, mode, s, id=f"{name}-{mode}-{s.id}") for s in shapes]
    metafunc.parametrize(("name", "mode", "shape"), cases)


def test_subject(name, mode, shape, bench_state, run_case):
    module = importlib.import_module(f"bench.{name}")
    settings = bench_state.timed, bench_state.quick, bench_state.official
    run_case(lambda: module.subject(shape, mode, Kit(name, *settings)))
