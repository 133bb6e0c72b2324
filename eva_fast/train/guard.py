"""What happens when a loss or gradient is not finite, or a loss far above the usual: the step is
skipped, without asking the host (`eva_fast.ops.guard_step`).

Counters live on the device and are read at log points. In fp16 the flag of what is not finite also
drives the loss scale.
"""

import logging

import torch
from torch import Tensor

from eva_fast.errors import RunError
from eva_fast.ops import FusedAdamW
from eva_fast.ops.guard_step import guard_unchecked
from eva_fast.train.spikes import Spikes

log = logging.getLogger(__name__)
MAX_STREAK = 10
GROWTH_STEPS = 2000
NO_SPIKES = None, 0.0, 0


class SkippedError(RunError):
    """Too many steps in a row were skipped: `streak` of them."""

    def __init__(self, message: str, streak: int = 0):
        super().__init__(message)
        self.streak = streak


class NonFiniteError(SkippedError):
    """Because their loss or gradient is not finite."""


class LossSpikeError(SkippedError):
    """Because their loss is far above that of the steps before."""


class Guard:
    """Skips steps with NaN or Inf, and those whose loss is a spike; keeps the loss scale of fp16 (1
    otherwise).

    spike: deviations above the running mean from which on a loss is one (`eva_fast.train.spikes`); 0
    for none.
    state: float32 [5] on the device, as `guard_step` has it; the longest streak is that since the last
    check.
    """

    def __init__(self, device: torch.device, scaled: bool, spike: float = 0.0):
        self.scaled = scaled
        self.spikes = Spikes(device, spike) if spike else None
        self.state = torch.zeros(5, device=device)
        self.state[3] = 2.0**16 if scaled else 1.0
        self._told = 0, 0  # skipped steps and spikes that were told of

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to differentiate."""
        return loss * self.state[3] if self.scaled else loss

    def unscale(self, norm: Tensor) -> Tensor:
        """The true gradient norm from that of scaled gradients."""
        return norm / self.state[3] if self.scaled else norm

    @torch.no_grad()
    def step(self, optimizer: FusedAdamW, loss: Tensor, norm: Tensor, clip: float) -> Tensor:
        """One optimiser step with gradients clipped to global norm `clip` (0: not clipped), or none
        where `loss` or `norm` is not finite or `loss` a spike. `norm` is the unscaled one. Returns
        whether the step was taken, bool [] on the device."""
        spikes = NO_SPIKES if self.spikes is None else self.spikes.judged
        applied, factor = guard_unchecked(
            loss, norm, self.state, clip, GROWTH_STEPS if self.scaled else 0, *spikes
        )
        optimizer.step(grad_scale=factor)  # NaN skips the step
        return applied

    def check(self) -> int:
        """Skipped steps so far (reads the device); says what was skipped since the last call, and why.
        SkippedError after 10 in a row; a run that goes on from there has ten more."""
        skipped, longest = (int(n) for n in self.state[:3:2].tolist())
        spikes, *last = (0, 0, 0, 0) if self.spikes is None else self.spikes.told()
        missed, spiked = skipped - self._told[0], spikes - self._told[1]
        self._told = skipped, spikes
        if missed > spiked:  # in fp16 the scale is found by them
            log.log(
                logging.INFO if self.scaled else logging.WARNING,
                "skipped %d steps: loss or gradient is not finite", missed - spiked,
            )  # fmt: skip
        if spiked:
            log.warning(
                "skipped %d steps: the loss is a spike, at the last of them %.4g, where the mean of "
                "recent steps is %.4g: %.3g deviations (spike=%g)", spiked, *last, self._limit,
            )  # fmt: skip
        if longest >= MAX_STREAK:
            self.state[1:3] = 0
            raise self._too_many(longest, spiked > missed - spiked)
        self.state[2] = self.state[1]
        return skipped

    @property
    def _limit(self) -> float:
        return 0.0 if self.spikes is None else self.spikes.limit

    def _too_many(self, streak: int, spikes: bool) -> SkippedError:
        """The error that says so."""
        if spikes:
            return LossSpikeError(
                f"the loss was a spike in {streak} steps in a row, {self._limit:g} deviations or more "
                "above the mean of the steps before (spike). They were skipped: the last checkpoint "
                "holds the weights from before them. Lower the learning rate (lr), or look at the data; "
                "a loss that rightly rises so needs a higher spike, or spike=0; then resume='auto'",
                streak,
            )
        return NonFiniteError(
            f"the loss or its gradient was not finite in {streak} steps in a row. They "
            "were skipped: the last checkpoint holds the weights from before them. Lower the "
            "learning rate (lr) or clip_grad, lengthen the warm-up (warmup_epochs), or look at "
            "the data and the teacher, then resume='auto'",
            streak,
        )

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        own = {} if self.spikes is None else {"spikes": self.spikes.state}
        return {"guard": self.state, **own}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Goes on from `tensors` of a checkpoint; one of a run without a limit has no spikes."""
        self.state.copy_(tensors["guard"])
        if self.spikes is not None and "spikes" in tensors:
            self.spikes.state.copy_(tensors["spikes"])
        self._told = int(self.state[0]), 0 if self.spikes is None else self.spikes.told()[0]
