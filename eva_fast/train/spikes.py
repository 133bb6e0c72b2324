"""Losses far above those of the steps before, told apart on the device.

    w = 1 / min(n, 128) at the n-th applied step
    mean <- mean + w (loss - mean),  square <- square + w (loss^2 - square)
    deviation = sqrt(square - mean^2 + (mean / 1000)^2)
    a spike after 128 applied steps: loss >= mean + limit deviation

The plain mean and deviation of the first 128 applied steps, exponentially weighted ones from there.
Skipped steps are no part of them, so that a spike hides no other one. In float64 the difference of
squares is exact far below the least deviation, which is for losses that stand still.

Published runs: llm.c passes over updates 7 deviations above the mean of its last 128 steps, in all its
scripts of GPT-2 and GPT-3; OLMo 2 (2024) counts values 7 deviations from a rolling mean as spikes; PaLM
(Chowdhery et al. 2022) went back to a checkpoint some 100 steps before each, and on with other batches.
The gradient's norm is not judged: `clip_grad` bounds what one of them does. The loss is one number over
all processes, the same bits on each, so all decide alike.
"""

import math

import torch
from torch import Tensor

STEPS = 128
"""Applied steps that the statistic is of, and before which nothing is a spike."""
LEAST_DEVIATION = 1e-3
"""Of the mean."""


class Spikes:
    """Which losses are at least `limit` deviations above the mean.

    state: float64 [7] on the device: applied steps, number of spikes, mean of the loss and of its
    square; of the last spike its loss, and both means then.
    """

    def __init__(self, device: torch.device, limit: float):
        self.limit = limit
        self.state = torch.zeros(7, dtype=torch.float64, device=device)
        self._steps, self._number, self._mean, self._square, *_ = self.state.unbind()
        self._means, self._last = self.state[2:4], self.state[4:]

    def among(self, loss: Tensor) -> Tensor:
        """Whether a step of that loss, [], is a spike: bool []."""
        own = LEAST_DEVIATION**2 - 1
        deviation = torch.addcmul(self._square, self._mean, self._mean, value=own).sqrt_()
        return (loss >= deviation.mul_(self.limit).add_(self._mean)) & (self._steps >= STEPS)

    def add(self, loss: Tensor, spike: Tensor, applied: Tensor) -> None:
        """Counts a step that was a spike, or takes one that was applied into the statistic."""
        loss = loss.double()
        found = torch.stack([loss, self._mean, self._square])
        torch.where(spike, found, self._last, out=self._last)
        self._number += spike
        weight = (self._steps + 1).clamp_(max=STEPS).reciprocal_()
        seen = torch.where(applied, torch.stack([loss, loss * loss]), self._means)
        self._means.lerp_(seen, weight)
        self._steps += applied

    def told(self) -> tuple[int, float, float, float]:
        """Spikes so far; of the last one its loss, the mean then, and how many deviations it was above
        that. Reads the device."""
        number, loss, mean, square = self.state[[1, 4, 5, 6]].tolist()
        deviation = math.sqrt(square - mean**2 * (1 - LEAST_DEVIATION**2)) or math.inf
        return int(number), loss, mean, (loss - mean) / deviation
