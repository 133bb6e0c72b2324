"""What a constant prediction scores on the rows that the student is scored on.

A loss alone does not say whether a student learned: where the targets share a large mean, as CLIP's
features do, predicting that mean in every place already scores well. The gain over it says it.
"""

from typing import Any

import torch
from torch import Tensor

from eva_fast import world
from eva_fast.objectives.base import Objective

LOSS = "baseline_loss"
NO_GAIN = 0.01


class Baseline:
    """The running mean of the targets as a prediction: the mean of all applied steps before this
    one, so that no row is scored by a mean that has seen it. Only the first step, before which
    there is nothing, is scored by the mean of its own rows, which flatters the constant.

    mean: float32 [C]; steps: float32 [], how many it is of. Both on the device, written in place.
    """

    def __init__(self, objective: Objective, width: int, device: torch.device):
        self.objective = objective
        self.mean = torch.zeros(width, device=device)
        self.steps = torch.zeros((), device=device)
        self._seen = torch.zeros_like(self.mean)

    @classmethod
    def of(cls, objective: Objective, width: int | None, device: torch.device) -> "Baseline | None":
        """Of targets of that width; None where the objective has none or does not say what a constant
        scores."""
        silent = type(objective).constant_loss is Objective.constant_loss
        return None if silent or width is None else cls(objective, width, device)

    @torch.no_grad()
    def score(self, target: Tensor, share: float) -> Tensor:
        """Loss of the constant on a micro-batch's target, float32 []. `share` is the part of the
        step that the micro-batch is."""
        rows = self.objective.averaged(target).float()
        own = rows.mean(0)
        self._seen.add_(own, alpha=share)
        constant = torch.where(self.steps > 0, self.mean, own)
        return self.objective.constant_loss(constant, rows)

    @torch.no_grad()
    def update(self, applied: Tensor) -> None:
        """Takes the step's targets into the mean; not those of a skipped step."""
        self.steps += applied
        world.mean_(self._seen)
        moved = torch.lerp(self.mean, self._seen, 1 / self.steps.clamp(min=1))
        self.mean.copy_(torch.where(applied, moved, self.mean))
        self._seen.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        return {"mean": self.mean, "steps": self.steps}


def with_gain(means: dict[str, float | None]) -> dict[str, float | None]:
    """Means of a log point with the `gain` of the loss over the baseline's, where there is one."""
    if LOSS not in means:
        return means
    loss, baseline = means["loss"], means[LOSS]
    gain = None if loss is None or baseline is None else baseline - loss
    first = {"loss": loss, LOSS: baseline, "gain": gain}
    return {**first, **{name: value for name, value in means.items() if name not in first}}


def verdict(metrics: dict[str, Any], taught: bool = True) -> str | None:
    """Plain words for a run whose last log point shows no gain; None where it has one or where
    nothing is known of it. taught: whether it has a teacher."""
    gain = metrics.get("gain")
    if gain is None or gain >= NO_GAIN:
        return None
    other = ", or with a teacher whose features share less of a mean (whiten=True takes it away)"
    return (
        f"the student learned nothing that shows: its loss {metrics['loss']:.4f} is no better than "
        f"{metrics[LOSS]:.4f}, what one constant prediction scores on the same patches. Train longer "
        f"(steps, epochs){', ' if taught else ' or '}with another learning rate (lr)"
        f"{other if taught else ''}"
    )
