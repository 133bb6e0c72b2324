"""How long both libraries take to import, processes in turn."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from bench.lightly.race import HERE, Turn

STATEMENTS = {
    "import": (
        "import lightly_train; lightly_train.pretrain",
        "import eva_fast; eva_fast.pretrain",
    ),
    "with torch": (
        "import lightly_train, torch; lightly_train.pretrain",
        "import eva_fast, torch; eva_fast.pretrain; import eva_fast.train, eva_fast.objectives",
    ),
}
"""{what: theirs, ours}. Ours loads torch where a run begins, so both are told."""


def measure(their_python: str, environment: Mapping[str, str], count: int) -> dict[str, Any]:
    """{what: [theirs, ours] of each round}, after a round that does not count: it compiles bytecode."""
    found: dict[str, Any] = {what: [] for what in STATEMENTS}
    for number in range(count + 1):
        for what, statements in STATEMENTS.items():
            taken = [
                _process(python, statement, environment)
                for python, statement in zip((their_python, sys.executable), statements)
            ]
            if number:
                found[what].append(taken)
    return found


def _process(python: str, statement: str, environment: Mapping[str, str]) -> Turn:
    before, begin = _children(), time.perf_counter()
    subprocess.run(
        [python, "-c", statement], check=True, cwd=HERE, env={**os.environ, **environment}
    )
    return Turn(time.perf_counter() - begin, _children() - before)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
