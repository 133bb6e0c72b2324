"""A few training images that stay the same through a run: for pictures and for calibration."""

from pathlib import Path
from typing import Any

import torch

from eva_fast.data import build_loader
from eva_fast.train.picture import save_picture
from eva_fast.train.session import Session


class Examples:
    """The same few training images each time, for pictures and for the teacher's calibration."""

    COUNT = 8
    CALIBRATION_BATCHES = 8

    def __init__(self, source: Any, loader_options: dict[str, Any], device: torch.device):
        self.source, self.options, self.device = source, loader_options, device
        self._batch: Any = None

    def _batches(self, size: int):
        loader = build_loader(
            self.source, batch_size=min(size, len(self.source)), workers=0, device=self.device,
            **self.options,
        )  # fmt: skip
        try:
            yield from loader
        finally:
            loader.close()

    def calibration_images(self):
        """Batches of training crops, uint8 [B,3,S,S]."""
        batches = self._batches(64)
        for _ in range(self.CALIBRATION_BATCHES):
            yield next(batches).images
        batches.close()

    def draw(self, path: Path, session: Session) -> None:
        """Images, masks, teacher features and the student's predictions as PCA colours."""
        if self._batch is None:
            batches = self._batches(self.COUNT)
            self._batch = next(batches)
            batches.close()
        images, mask, student = self._batch.images, self._batch.mask, session.model
        was_training = student.training
        student.eval()
        with torch.no_grad():
            features = student.forward_features(images, mask)[:, 1:]
            prediction = student.lm_head(features.to(student.lm_head.weight.dtype))
            target = session.teacher(images)
        student.train(was_training)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_picture(path, images, mask, target, prediction, student.grid)
