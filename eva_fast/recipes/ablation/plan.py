"""What an ablation is going to do: measured and counted once, then kept in its folder."""

import json
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eva_fast.documents import read_object
from eva_fast.errors import UsageError
from eva_fast.files import atomic_write
from eva_fast.recipes.ablation.budget import Budget, Cost, affordable
from eva_fast.recipes.ablation.rows import Row
from eva_fast.recipes.ablation.runs import Runs
from eva_fast.recipes.ablation.scores import Probes

log = logging.getLogger(__name__)
PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What was asked for, and what it comes to."""

    asked: dict[str, Any]
    budget: Budget
    probe_seconds: float
    beside: dict[str, Any]
    """Scores of the teacher, of pixels and of initial values."""
    settled: dict[str, Any]
    """Options that the runs share."""


def planned(
    out: Path, asked: dict[str, Any], rows: tuple[Row, ...], runs: Runs, judge: Probes
) -> Plan:
    """The plan in the folder, or a new one: a few steps of every run are timed, its arithmetic is
    counted, and what stands beside is probed. UsageError where the folder's was another."""
    path = out / PLAN
    if path.is_file():
        known = read_object(path)
        was = known.get("asked")
        was = was if isinstance(was, dict) else {}
        other = [name for name in asked if was.get(name) != asked[name]]
        if other:
            changes = ", ".join(f"{n}: {was.get(n)!r} -> {asked[n]!r}" for n in other)
            raise UsageError(
                f"{out} was begun with other options ({changes}); give the same ones to go on with it, "
                "or another out="
            )
        try:
            return Plan(**{**known, "budget": Budget.from_dict(known["budget"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path} is not a plan of this version ({error!r}); begin anew with another out="
            ) from None
    costs: dict[str, Cost] = {}
    for row in rows:
        log.info("measuring %s ...", row.name)
        costs |= runs.measure(row)
    first = runs.config(rows[0].trained[0], out, None, seed=0, steps=1)
    start = time.monotonic()
    beside = judge.beside(first, asked["seeds"])
    probe_seconds = time.monotonic() - start
    batch = {
        p.name: p.options(runs.said).get("batch_size", first.optim.batch_size)
        for r in rows
        for p in r.trained
    }
    if asked["flops"] is None:
        budget = affordable(
            rows, costs, batch, seeds=asked["seeds"], seconds=60 * asked["budget_minutes"],
            probe_seconds=probe_seconds,
        )  # fmt: skip
    else:
        budget = Budget(flops=asked["flops"], batch=batch, costs=costs)
    for row in rows:
        for part in row.trained:
            budget.steps(row, part)  # a budget that is too small is told now
    options = first.options()
    shared = {name: options[name] for name in ("data", "model", "teacher", "batch_size", "lr")}
    plan = Plan(
        asked=asked, budget=budget, probe_seconds=probe_seconds, beside=beside, settled=shared
    )
    kept = {name: getattr(plan, name) for name in Plan.__dataclass_fields__}
    with atomic_write(path) as draft:
        draft.write_text(json.dumps({**kept, "budget": budget.to_dict()}, indent=1) + "\n")
    shutil.rmtree(out / "measured", ignore_errors=True)
    return plan
