"""The stages in order of their value, with the time each may take of `runner.FULL_BUDGET`."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.session.pytest_notes import OUT
from bench.session.runner import Stage, module

# (name, seconds, least): together more than the budget, since most need less than they may take.
_BENCHES = (
    ("ceilings", 30, 8),
    ("step", 130, 15),
    ("batch", 60, 15),
    ("attention", 40, 8),
    ("ops", 80, 8),
    ("compiled", 150, 30),
    ("models", 90, 15),
    ("profile", 40, 10),
)


def stages(gpu: bool) -> list[Stage]:
    """Smoke, tests, then what is measured. gpu: whether there is one; without, a few tests run."""
    return [
        Stage(name="smoke", seconds=90, least=10, command=module("smoke"), whole=True),
        Stage(name="tests", seconds=140, least=15, command=_tests(gpu)),
        *(
            Stage(name=name, seconds=seconds, least=least, command=module(name))
            for name, seconds, least in _BENCHES
        ),
    ]


def _tests(gpu: bool):
    """The tests marked gpu; side by side where pytest-xdist is there, for they mostly compile."""
    words = [sys.executable, "-m", "pytest", "-p", "bench.session.pytest_notes", "-q"]
    words += ["-p", "no:cacheprovider", "--tb=short"]
    if gpu:
        words += ["-m", "gpu", "tests"]
        if importlib.util.find_spec("xdist") is not None:
            words += ["-n", str(max(1, min(6, (os.cpu_count() or 2) // 2)))]
    else:
        words += ["-k", "torch", "tests/ops/test_patchify.py"]

    def command(seconds: float, out: Path) -> Sequence[str]:
        return ["env", f"{OUT}={out}", *words]

    return command
