"""`ablate()`: the objectives beside each other at equal budget, top to bottom.

Every run lies in a folder of its own and goes on where it was killed; every finished probe is a file.
The same call again does what is left.
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eva_fast.files import locked, writing_to
from eva_fast.keywords import AnyPath, PretrainOptions, Unpack
from eva_fast.options import plain, require, user_path
from eva_fast.recipes.ablation.rows import Row, check_said, chosen_rows

if TYPE_CHECKING:
    from eva_fast.recipes.ablation.scores import Probes

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationResult:
    """What an ablation leaves behind."""

    out: Path
    tables: dict[str, Any]
    """What ablation.json holds."""
    stopped_by: str | None = None
    """Name of the signal that ended it early, or None."""


def ablate(
    out: AnyPath,
    budget: float = 120.0,
    seeds: int = 3,
    *,
    rows: str | Sequence[str] = (),
    flops: float | None = None,
    probe: str | Sequence[str] = ("knn", "linear"),
    labelled: Any = None,
    **options: Unpack[PretrainOptions],
) -> AblationResult:
    """Trains every row of the table with the same arithmetic, probes it and draws the tables.

    Args:
        out: folder of the ablation; one that was begun goes on.
        budget: minutes that all runs and probes together are to take here.
        seeds: runs of each row.
        rows: names of `eva_fast.recipes.ablation.rows.ROWS`, a list or with commas; by default all.
        flops: arithmetic of a row and seed, in place of minutes.
        probe: of "knn" and "linear", a list or with a comma.
        labelled: images with classes to probe on, as `eva_fast.evaluate` takes them; by default
            those that are trained on.
        options: of `eva_fast.pretrain`, the same for all rows, `data`, `model` and `teacher` too.

    Raises:
        ValueError: options that do not fit together or are not those that `out` was begun with, a
            budget too small, images without classes.
    """
    said = {name: value for name, value in options.items() if value is not None}
    return run_ablation(
        Path(user_path(out)), said, budget=budget, seeds=seeds, rows=rows, flops=flops,
        probe=probe, labelled=labelled,
    )  # fmt: skip


def run_ablation(
    out: Path,
    said: Mapping[str, Any],
    *,
    budget: float,
    seeds: int,
    rows: str | Sequence[str] = (),
    flops: float | None = None,
    probe: str | Sequence[str] = ("knn", "linear"),
    labelled: Any = None,
) -> AblationResult:
    """`ablate` for options in a dict."""
    check_said(said)
    require(seeds >= 1, f"seeds must be at least 1, got {seeds}")
    require(budget > 0, f"budget must be above 0 minutes, got {budget:g}")
    require(flops is None or flops > 0, f"flops must be above 0, got {flops}")
    chosen = chosen_rows(rows.split(",") if isinstance(rows, str) and rows else rows)
    from eva_fast.evaluation.evaluator import check_probes
    from eva_fast.evaluation.figures import pyplot
    from eva_fast.recipes.ablation.scores import Probes
    from eva_fast.recipes.hearing import heard

    pyplot()  # what is missing is told before hours of work
    judge = Probes(
        said.get("data", "builtin") if labelled is None else labelled, check_probes(probe)
    )
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    asked = {
        "budget_minutes": budget if flops is None else None, "flops": flops, "seeds": seeds,
        "rows": [row.name for row in chosen], "probes": list(judge.probes),
        "labelled": plain(labelled), "options": {name: plain(v) for name, v in said.items()},
    }  # fmt: skip
    with heard(), locked(out):
        return _run(out, said, asked, chosen, judge)


def _run(
    out: Path,
    said: Mapping[str, Any],
    asked: dict[str, Any],
    rows: tuple[Row, ...],
    judge: "Probes",
) -> AblationResult:
    """Plan, runs, probes, tables; what is there already is not done again."""
    from eva_fast.recipes.ablation.budget import plan_lines
    from eva_fast.recipes.ablation.plan import planned
    from eva_fast.recipes.ablation.report import tables, write
    from eva_fast.recipes.ablation.runs import Runs

    runs = Runs(out, said)
    plan = planned(out, asked, rows, runs, judge)
    log.info("%s", "\n".join(plan_lines(plan.budget, rows, asked["seeds"], plan.probe_seconds)))
    stopped = None
    for seed, row in itertools.product(range(asked["seeds"]), rows):
        stopped = runs.finish(row, seed, plan.budget, judge)
        found = tables(asked, rows, plan, runs.scores)
        write(out, found)
        if stopped is not None:
            log.info("stopped by %s; the same command goes on", stopped)
            break
    return AblationResult(out=out, tables=found, stopped_by=stopped)
