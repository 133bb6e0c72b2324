"""Length of a run, and the learning rate as a pure function of the step."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eva_fast.train.config import BUILTIN_EPOCHS, EVA_EPOCHS, OptimConfig

if TYPE_CHECKING:
    from eva_fast.config import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLength:
    """How long a run is, in optimiser steps."""

    total: int
    warmup: int
    steps_per_epoch: int

    @classmethod
    def of(cls, config: "Config", steps_per_epoch: int) -> "RunLength":
        """`steps`, else `epochs`, else EVA-01's 150 epochs (5 on the built-in drawings, a few
        minutes); a warm-up in epochs is at most a tenth of it."""
        optim = config.optim
        default = BUILTIN_EPOCHS if config.data.is_builtin else EVA_EPOCHS
        epochs = optim.epochs if optim.epochs is not None else default
        total = optim.steps or max(1, round(epochs * steps_per_epoch))
        warmup = min(round(optim.warmup_epochs * steps_per_epoch), total // 10)
        if optim.warmup_steps is not None:
            warmup = min(optim.warmup_steps, total)
        return cls(total=total, warmup=warmup, steps_per_epoch=steps_per_epoch)

    def describe(self, images: int, batch_size: int) -> str:
        """The length in words, for the log. images: how many the data has."""
        if images >= batch_size:
            return (
                f"{images:,} images: {self.total:,} steps of {batch_size}, "
                f"{self.steps_per_epoch:,} an epoch"
            )
        return (
            f"{images:,} images are fewer than the batch of {batch_size}: a batch repeats them, about "
            f"{batch_size / images:.1f} crops of each, and an epoch is one step ({self.total:,} in "
            f"all). With batch_size={images} a batch has each image once"
        )

    def rate(self, step: int, optim: OptimConfig) -> float:
        """The learning rate of step `step`, counted from 0."""
        return learning_rate(
            step,
            total=self.total,
            warmup=self.warmup,
            peak=optim.lr,
            minimum=optim.min_lr,
            start=optim.warmup_lr,
        )


def learning_rate(
    step: int, *, total: int, warmup: int, peak: float, minimum: float, start: float = 0.0
) -> float:
    """EVA-01's schedule: `warmup` steps linearly from `start` to `peak`, both ends included, then a
    half cosine that would reach `minimum` at step `total`. `step` counts from 0."""
    if step < warmup:
        return start + (peak - start) * step / max(warmup - 1, 1)
    progress = (step - warmup) / max(total - warmup, 1)
    return minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * min(progress, 1.0)))
