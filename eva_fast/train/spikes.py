"""Losses far above those of the steps before, told apart on the device.

A spike is at least `limit` deviations above the mean (`eva_fast.ops.guard_step` has the maths): the
plain mean and deviation of the first 128 applied steps, exponentially weighted ones from there. Skipped
steps are no part of them, so that a spike hides no other one. In float64 the difference of squares is
exact far below the least deviation, which is for losses that stand still.

Published runs: llm.c passes over updates 7 deviations above the mean of its last 128 steps, in all its
scripts of GPT-2 and GPT-3; OLMo 2 (2024) counts values 7 deviations from a rolling mean as spikes; PaLM
(Chowdhery et al. 2022) went back to a checkpoint some 100 steps before each, and on with other batches.
The gradient's norm is not judged: `clip_grad` bounds what one of them does. The loss is one number over
all processes, the same bits on each, so all decide alike.
"""

import math

import torch
from torch import Tensor

from eva_fast.ops.guard_step import LEAST_DEVIATION

STEPS = 128
"""Applied steps that the statistic is of, and before which nothing is a spike."""


class Spikes:
    """Which losses are at least `limit` deviations above the mean.

    state: float64 [7] on the device, as `guard_step` has it.
    """

    def __init__(self, device: torch.device, limit: float):
        self.limit = limit
        self.state = torch.zeros(7, dtype=torch.float64, device=device)

    @property
    def judged(self) -> tuple[Tensor, float, int]:
        """What `guard_step` takes: the statistic, the limit, and after how many steps it holds."""
        return self.state, self.limit, STEPS

    def told(self) -> tuple[int, float, float, float]:
        """Spikes so far; of the last one its loss, the mean then, and how many deviations it was above
        that. Reads the device."""
        number, loss, mean, square = self.state[[1, 4, 5, 6]].tolist()
        deviation = math.sqrt(square - mean**2 * (1 - LEAST_DEVIATION**2)) or math.inf
        return int(number), loss, mean, (loss - mean) / deviation
