"""The runs of the rows and the scores of their checkpoints, each in a place of its own."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eva_fast.config import Config
from eva_fast.documents import read_object
from eva_fast.files import atomic_write
from eva_fast.recipes.ablation.budget import POINTS, STEPS, Budget, Clock, Cost
from eva_fast.recipes.ablation.rows import Row
from eva_fast.recipes.ablation.scores import Probes
from eva_fast.recipes.pretrain import run
from eva_fast.train.checkpoint import steps_in

ALL_KEPT = 10**6
MINUTES = 5.0
"""Between checkpoints: what a kill costs at most."""


class Runs:
    """Trains and scores, and knows what is done already.

    out/runs/ROW-SEED, of a tokenizer ROW-TOKENIZER-SEED, is a run's folder; out/scores holds a file a
    run."""

    def __init__(self, out: Path, said: Mapping[str, Any]):
        self.out, self.said = out, said

    @property
    def scores(self) -> dict[str, Any]:
        """{ROW-SEED: what was found of that run} of those that are finished."""
        files = sorted((self.out / "scores").glob("*.json"))
        return {path.stem: read_object(path) for path in files}

    def finish(self, row: Row, seed: int, budget: Budget, judge: Probes) -> str | None:
        """Trains and scores the row with that seed as far as it is not done. Name of the signal that
        stopped it, or None."""
        score = self.out / "scores" / f"{row.name}-{seed}.json"
        if score.is_file():
            return None
        start, folder = time.monotonic(), self.out
        for part in row.trained:
            teacher = None if part is row.trained[0] else folder
            folder = self.out / "runs" / (f"{row.name}-{seed}" if part is row else part.name)
            if part is not row:
                folder = folder.with_name(f"{row.name}-{part.name}-{seed}")
            steps = budget.steps(row, part)
            config = self.config(part, folder, teacher, seed=seed, steps=steps)
            stopped = None if _ended(folder, steps) else run(config).signal
            if stopped is not None:
                return stopped
        folders = {int(f.name.rpartition("_")[2]): f for f in steps_in(folder / "checkpoints")}
        points = {
            step: folders[step] for step in range(steps // POINTS, steps + 1, steps // POINTS)
        }
        found = judge.checkpoints(config, list(points.values()))
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        with atomic_write(score) as draft:
            result = {
                "row": row.name, "seed": seed, "metrics": json.loads(lines[-1]),
                "seconds_of_this_call": round(time.monotonic() - start, 1),
                "points": {str(step): found[f.name] for step, f in points.items()},
            }  # fmt: skip
            draft.write_text(json.dumps(result, indent=1) + "\n")
        for step in folders.keys() - {steps}:
            shutil.rmtree(folders[step], ignore_errors=True)
        return None

    def measure(self, row: Row) -> dict[str, Cost]:
        """Costs of the row's runs by short ones, {name of a part: cost}, left in out/measured."""
        found: dict[str, Cost] = {}
        folder = self.out
        for part in row.trained:
            teacher = None if part is row.trained[0] else folder
            folder = self.out / "measured" / part.name
            shutil.rmtree(folder, ignore_errors=True)
            config, clock = self.config(part, folder, teacher, seed=0, steps=STEPS), Clock()
            if run(config, on_step=clock).signal is not None:
                raise KeyboardInterrupt
            found[part.name] = clock.cost(config)
        return found

    def config(
        self, part: Row, folder: Path, teacher: Path | None, *, seed: int, steps: int
    ) -> Config:
        """A run's options; `teacher` is the folder of its tokenizer."""
        options = part.options(self.said)
        if teacher is not None:
            options = {**options, "teacher": str(teacher), "whiten": False}
        every = max(1, steps // POINTS)
        return Config.from_options(
            {
                **options, "seed": seed, "steps": steps, "out": folder, "resume": "auto",
                "checkpoint_every": every, "checkpoint_minutes": MINUTES,
                "keep_checkpoints": ALL_KEPT,
            }
        ).settled()  # fmt: skip


def _ended(folder: Path, steps: int) -> bool:
    """Whether a run wrote its weights, the last thing that it does, at its last step."""
    last = folder / "checkpoints" / f"step_{steps:09d}"
    return last.is_dir() and (folder / "model.safetensors").is_file()
