"""What happens when a loss or gradient is not finite: the step is skipped, without asking the host.

Counters live on the device and are read at log points. In fp16 the same flag drives the loss scale.
"""

import math

import torch
from torch import Tensor

from eva_fast.errors import RunError
from eva_fast.ops import FusedAdamW

MAX_STREAK = 10
GROWTH_STEPS = 2000


class NonFiniteError(RunError):
    """Too many steps in a row had a loss or gradient that is not finite: `streak` of them."""

    def __init__(self, message: str, streak: int = 0):
        super().__init__(message)
        self.streak = streak


class Guard:
    """Skips steps with NaN or Inf and keeps the loss scale of fp16 (1 otherwise).

    state: float32 [5] on the device: skipped steps, present streak, longest streak since the last
    check, loss scale, finite steps since the scale last changed.
    """

    def __init__(self, device: torch.device, scaled: bool):
        self.scaled = scaled
        self.state = torch.zeros(5, device=device)
        self.state[3] = 2.0**16 if scaled else 1.0

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to differentiate."""
        return loss * self.state[3] if self.scaled else loss

    def unscale(self, norm: Tensor) -> Tensor:
        """The true gradient norm from that of scaled gradients."""
        return norm / self.state[3] if self.scaled else norm

    @torch.no_grad()
    def step(self, optimizer: FusedAdamW, loss: Tensor, norm: Tensor, clip: float) -> Tensor:
        """One optimiser step with gradients clipped to global norm `clip` (0: not clipped), or none
        where `loss` or `norm` is not finite. `norm` is the unscaled one. Returns whether the step
        was taken, bool [] on the device."""
        # x - x is 0 of what is finite, else NaN, which equals nothing
        finite = (loss - loss) == (norm - norm)
        scale = 1 / self.state[3]
        if clip > 0:  # as torch.nn.utils.clip_grad_norm_
            scale = scale * (clip / (norm + 1e-6)).clamp_max(1.0)
        optimizer.step(grad_scale=torch.where(finite, scale, math.nan))  # NaN skips the step
        self._count((~finite).float())
        return finite

    def _count(self, bad: Tensor) -> None:
        skipped, streak, longest, scale, steady = self.state.unbind()
        streak = (streak + 1) * bad
        if self.scaled:
            steady = (steady + 1) * (1 - bad)
            grow = (steady >= GROWTH_STEPS).float()
            scale = (scale * (1 - 0.5 * bad) * (1 + grow)).clamp(1.0, 2.0**24)
            steady = steady * (1 - grow)
        longest = torch.maximum(longest, streak)
        self.state.copy_(torch.stack([skipped + bad, streak, longest, scale, steady]))

    def check(self) -> int:
        """Skipped steps so far (reads the device). NonFiniteError after 10 in a row; a run that goes
        on from there has ten more."""
        skipped, _, longest, _, _ = self.state.tolist()
        if longest >= MAX_STREAK:
            self.state[1:3] = 0
            raise NonFiniteError(
                f"the loss or its gradient was not finite in {int(longest)} steps in a row. They "
                "were skipped: the last checkpoint holds the weights from before them. Lower the "
                "learning rate (lr) or clip_grad, lengthen the warm-up (warmup_epochs), or look at "
                "the data and the teacher, then resume='auto'",
                streak=int(longest),
            )
        self.state[2] = self.state[1]
        return int(skipped)
