"""Probes of a row's checkpoints, and of what stands beside them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eva_fast.config import Config
from eva_fast.evaluation.compare import compare
from eva_fast.evaluation.features import PIXELS, Extractor, pixel_features, student_features
from eva_fast.evaluation.splits import known_labels, open_labelled, split
from eva_fast.objectives import open_objective
from eva_fast.objectives.request import open_teacher
from eva_fast.teachers import load_teacher
from eva_fast.train import checkpoint
from eva_fast.train.resolve import setting_of


class Probes:
    """Scores of students on the labelled images `data`, opened once.

    UsageError where the images have no classes."""

    def __init__(self, data: Any, probes: Sequence[str]):
        self.data, self.probes = data, tuple(probes)
        self.sources = open_labelled(data)
        self.labels = known_labels(self.sources)
        if self.labels is not None:
            split(self.labels, data)  # what is wrong with them is told before any work

    def checkpoints(self, config: Config, folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
        """{checkpoint's name: its scores} of a run's student at each of `folders`."""
        build = _students(config)
        return self._scores(config, {f.name: student_features(build(f)) for f in folders})

    def beside(self, config: Config, seeds: int) -> dict[str, dict[str, Any]]:
        """Scores of the teacher, of pixels and of initial values of the run's student, a seed each."""
        setting, found = setting_of(config), {}
        given = config.teacher.teacher
        judge = given if isinstance(given, nn.Module) else load_teacher(
            given, grid=setting.sizes.grid, device=str(setting.device)
        )  # fmt: skip
        judge = judge.to(setting.device).eval()
        found["teacher"] = lambda images: judge(images).mean(1)
        found[f"{PIXELS}x{PIXELS} pixels"] = pixel_features
        build = _students(config)
        for seed in range(seeds):
            torch.manual_seed(seed)
            found[f"random init {seed}"] = student_features(build(None))
        return self._scores(config, found)

    def _scores(
        self, config: Config, extractors: dict[str, Extractor]
    ) -> dict[str, dict[str, Any]]:
        setting = setting_of(config)
        found = compare(
            extractors, self.sources, self.labels, self.data, self.probes,
            size=setting.sizes.img_size, device=setting.device,
            max_megapixels=config.data.max_megapixels,
        )  # fmt: skip
        about = {"train": found.train, "val": found.val, "majority": found.majority}
        about["classes"] = len(found.classes)
        rows = [row.to_dict() for row in found.rows]
        return {row.pop("features"): {**row, **about} for row in rows}


def _students(config: Config) -> Callable[[Path | None], nn.Module]:
    """From a checkpoint of the run to the part of it that is handed on; None: initial values."""
    setting = setting_of(config)
    objective = open_objective(config.objective.objective)
    teacher = open_teacher(config.teacher.teacher, objective.request(setting), setting)

    def build(folder: Path | None) -> nn.Module:
        module = objective.build(setting, teacher).to(setting.device)
        if folder is not None:
            checkpoint.load(folder, {"model": module.state_dict()})
        return objective.exported(module.eval())

    return build
