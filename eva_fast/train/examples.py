"""A few training images that stay the same through a run: for pictures and for calibration."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eva_fast.data import Batch, build_loader
from eva_fast.objectives.base import Objective

PICTURE_ROWS = 8


class Examples:
    """The first samples of a run, made in this process, the same ones each time.

    Args:
        source: of the images.
        options: of `build_loader`: what a sample is.
        device: where the batches go.
    """

    def __init__(self, source: Any, options: dict[str, Any], device: torch.device):
        self.source, self.options, self.device = source, options, device
        self._shown: Batch | None = None

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of `size` samples, or as many as there are images; endless."""
        loader = build_loader(
            self.source, batch_size=min(size, len(self.source)), workers=0, device=self.device,
            **self.options,
        )  # fmt: skip
        try:
            yield from loader
        finally:
            loader.close()

    def draw(
        self, path: Path, objective: Objective, module: nn.Module, teacher: nn.Module | None
    ) -> Path:
        """The objective's picture of the first samples. Returns `path`."""
        if self._shown is None:
            batches = self.batches(PICTURE_ROWS)
            self._shown = next(batches)
            batches.close()  # type: ignore[attr-defined]
        was_training = module.training
        module.eval()
        with torch.no_grad():
            objective.picture(path, module, teacher, self._shown)
        module.train(was_training)
        return path
