"""What a row's steps cost, and how many of them a budget pays for."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from eva_fast.config import Config
from eva_fast.errors import UsageError
from eva_fast.recipes.ablation.rows import Row

POINTS = 4
"""Scores are taken at so many equal parts of a run."""
STEPS, WARM = 8, 2
"""Of a measuring run, and how many of them are not timed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of one run: counted arithmetic of an image, measured time."""

    student: int
    """FLOPs an image of what trains, forward and backward."""
    teacher: int
    """FLOPs an image of the frozen network that answers: a teacher, or a tokenizer."""
    step_seconds: float
    start_seconds: float
    """Until the first step, and after the last."""

    @property
    def flops(self) -> int:
        return self.student + self.teacher


class Clock:
    """Times a short run by its steps."""

    def __init__(self) -> None:
        self.marks = [time.perf_counter()]

    def __call__(self, step: int) -> None:
        self.marks.append(time.perf_counter())

    def cost(self, config: Config) -> Cost:
        """Called after the run of `config` has ended."""
        from eva_fast.planning.run import PlannedRun
        from eva_fast.train.resolve import setting_of

        end, setting = time.perf_counter(), setting_of(config)
        steps = [b - a for a, b in zip(self.marks[1:], self.marks[2:])]
        typical = statistics.median(steps[WARM:])
        planned = PlannedRun.of(config, setting.compute_dtype, setting.device.type)
        batch = config.optim.batch_size
        teacher = sum(op.flops for op in planned.teacher_operators(batch))
        return Cost(
            student=planned.count(batch).flops // batch, teacher=teacher // batch,
            step_seconds=typical,
            start_seconds=max(0.0, end - self.marks[0] - typical * (len(self.marks) - 1)),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Equal arithmetic for every row."""

    flops: float
    """Of a row and seed: student, teacher and, where there is one, the tokenizer's training."""
    batch: Mapping[str, int]
    costs: Mapping[str, Cost]

    def steps(self, row: Row, part: Row) -> int:
        """Of one of the row's runs: a multiple of `POINTS`. UsageError where it is none."""
        cost = self.costs[part.name].flops * self.batch[part.name]
        steps = round(row.share(part) * self.flops / cost / POINTS) * POINTS
        if steps < POINTS:
            least = POINTS * cost / row.share(part)
            raise UsageError(
                f"the budget of {self.flops:.3g} FLOPs a row is too small: {POINTS} steps of "
                f"{part.name} take {least:.3g}"
            )
        return steps

    def spent(self, row: Row, part: Row) -> int:
        """FLOPs of one of the row's runs."""
        return self.steps(row, part) * self.batch[part.name] * self.costs[part.name].flops

    def seconds(self, row: Row) -> float:
        """Expected, of one seed of the row without its probes."""
        return sum(
            self.costs[p.name].start_seconds + self.steps(row, p) * self.costs[p.name].step_seconds
            for p in row.trained
        )

    def to_dict(self) -> dict[str, Any]:
        costs = {name: asdict(cost) for name, cost in self.costs.items()}
        return {"flops": self.flops, "batch": dict(self.batch), "costs": costs}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Budget":
        costs = {name: Cost(**cost) for name, cost in found["costs"].items()}
        return cls(flops=found["flops"], batch=found["batch"], costs=costs)


def affordable(
    rows: tuple[Row, ...], costs: Mapping[str, Cost], batch: Mapping[str, int], *,
    seeds: int, seconds: float, probe_seconds: float,
) -> Budget:  # fmt: skip
    """The budget a row that lets all runs and probes end in about `seconds`. UsageError where their
    starts and probes alone take longer."""
    parts = [(row, part) for row in rows for part in row.trained]
    starts = seeds * (sum(costs[p.name].start_seconds for _, p in parts))
    probes = probe_seconds * (1 + seeds * len(rows))
    pace = seeds * sum(
        row.share(p) * costs[p.name].step_seconds / (costs[p.name].flops * batch[p.name])
        for row, p in parts
    )
    left = seconds - starts - probes
    if left <= 0:
        raise UsageError(
            f"a budget of {seconds / 60:.3g} minutes is too small: starts and probes of {seeds} x "
            f"{len(rows)} runs take {(starts + probes) / 60:.3g}"
        )
    return Budget(flops=left / pace, batch=batch, costs=costs)


def plan_lines(
    budget: Budget, rows: tuple[Row, ...], seeds: int, probe_seconds: float
) -> list[str]:
    """What is going to be run, with expected minutes."""
    lines = [f"{budget.flops:.4g} FLOPs a row and seed; {seeds} seeds; expected minutes:"]
    total = probe_seconds
    for row in rows:
        minutes = seeds * (budget.seconds(row) + probe_seconds) / 60
        total += 60 * minutes
        runs = " + ".join(_run_line(budget, row, part) for part in row.trained)
        lines.append(f"  {row.name:8s} {minutes:7.1f}  {runs}")
    return [*lines, f"  {'all':8s} {total / 60:7.1f}  probes included"]


def _run_line(budget: Budget, row: Row, part: Row) -> str:
    cost = budget.costs[part.name]
    return (
        f"{part.name}: {budget.steps(row, part):,} steps of {budget.batch[part.name]} images, "
        f"{cost.student / 1e9:.3g} + {cost.teacher / 1e9:.3g} GFLOP an image"
    )
