"""Every op, and one block, at real shapes."""

import importlib

import pytest

from bench.conftest import state_of
from bench.kit import Kit
from bench.shapes import check_shape, op_shapes
from bench.subjects import subjects


def pytest_generate_tests(metafunc):
    state = state_of(metafunc.config)
    shapes = op_shapes(state.quick) if state.timed else [check_shape()]
    cases = []
    for name in subjects():
        for mode in importlib.import_module(f"bench.ops.{name}").MODES:
            if state.timed and state.quick and mode == "both" and name != "block":
                continue  # forward and backward are timed apart already
            cases += [pytest.param(name, mode, s, id=f"{name}-{mode}-{s.id}") for s in shapes]
    metafunc.parametrize(("name", "mode", "shape"), cases)


def test_op(name, mode, shape, bench_state, run_case):
    module = importlib.import_module(f"bench.ops.{name}")
    settings = bench_state.timed, bench_state.quick
    run_case(lambda: module.subject(shape, mode, Kit(name, *settings)))
