"""The steps of the other objectives beside timm's modules; one alone: `python -m bench.objectives`."""

import pytest
import torch

from bench import objectives
from bench.conftest import state_of

CHECKED = {
    "fd": ("beit_tiny_patch16_64", 2), "swin": ("swinv2_tiny_window4_64", 7),
    "tokens": ("beit_tiny_patch16_64", 4), "mae": ("vit_tiny_patch16_64", 2),
}  # fmt: skip
TIMED = {"fd": (4, 4), "swin": (7, 2), "tokens": (4, 4), "mae": (12, 8)}
"""(blocks, batch): the published widths with fewer blocks."""


def pytest_generate_tests(metafunc):
    state = state_of(metafunc.config)
    names = [] if state.timed and state.quick else objectives.NAMES
    metafunc.parametrize("name", names)


def test_step(name, bench_state, run_case):
    if not bench_state.timed:
        model, depth = CHECKED[name]
        run_case(lambda: objectives.pair(name, model, depth).case())
        return
    if torch.cuda.is_available():
        pytest.skip("timed on CPUs")
    depth, batch = TIMED[name]
    run_case(lambda: objectives.pair(name, depth=depth, batch=batch).case())
