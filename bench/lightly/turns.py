"""What both processes share: steps in turns, batches kept in memory, the count of a step's products.

Imported by LightlyTrain's Python too, so torch is imported where it is used.
"""

import copy
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

KEPT = 2
"""Batches in memory that are trained on again and again."""


class Turns:
    """Takes orders, a line of standard input each, and answers on the descriptor `answers`.

    {"steps": N}: the next N steps run; the answer has their seconds. {"count": true}: the next step's
    matrix products, convolutions and attention are counted. End of input: the run stops.
    Call `after_step` after each step.
    """

    def __init__(self, answers: int):
        self._orders = os.fdopen(os.dup(0))
        sys.stdin = open(os.devnull)  # noqa: SIM115
        self._answers = os.fdopen(answers, "w")
        self._left = 1
        self._begin = time.perf_counter()
        self._counting: Any = None

    def after_step(self) -> bool:
        """Waits for the next order where the last is done. False: there is none."""
        self._left -= 1
        if self._left:
            return True
        self._answer(self._result())
        order = json.loads(self._orders.readline() or "{}")
        if order.get("count"):
            from bench.lightly.counting import Counting

            self._counting = Counting()
            self._counting.__enter__()
        self._left = order.get("steps", 1)
        self._begin = time.perf_counter()
        return bool(order)

    def _result(self) -> dict[str, Any]:
        if self._counting is None:
            return {"seconds": time.perf_counter() - self._begin}
        counting, self._counting = self._counting, None
        counting.__exit__(None, None, None)
        return {"flops": counting.flops}

    def _answer(self, found: dict[str, Any]) -> None:
        print(json.dumps(found), file=self._answers, flush=True)


class InMemory:
    """A loader that gives its first batches again and again; all else is the loader's."""

    def __init__(self, loader: Any):
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        kept = first(self._loader)
        while True:
            yield from kept

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __enter__(self) -> "InMemory":
        self._loader.__enter__()
        return self

    def __exit__(self, *raised: Any) -> Any:
        return self._loader.__exit__(*raised)


def first(loader: Iterable[Any]) -> list[Any]:
    """Copies of the first batches, since a loader may use their memory again."""
    return [copy.deepcopy(batch) for _, batch in zip(range(KEPT), loader)]
