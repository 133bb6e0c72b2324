"""What the steps since the last log point add up to, on the device."""

import math

import torch
from torch import Tensor


class Sums:
    """Sums over the steps since the last log point; skipped steps do not count.

    tensor: float64 [3 + metrics] on the device: loss, gradient norm, number of steps, metrics.
    """

    def __init__(self, metrics: tuple[str, ...], device: torch.device):
        self.metrics = metrics
        self.tensor = torch.zeros(3 + len(metrics), dtype=torch.float64, device=device)
        self._one = torch.ones((), dtype=torch.float64, device=device)
        self._nothing = torch.zeros_like(self.tensor)
        # the smallest loss, and the smallest of -loss, since the process began the run
        self._ends = torch.full((2,), math.inf, dtype=torch.float64, device=device)
        self._unseen = self._ends.clone()

    @torch.no_grad()
    def add(self, applied: Tensor, loss: Tensor, norm: Tensor, metrics: dict[str, Tensor]) -> None:
        """Adds a step; stays on the device."""
        measured = [metrics[name].double() for name in self.metrics]
        seen = torch.stack([loss.double(), norm.double(), self._one, *measured])
        self.tensor += torch.where(applied, seen, self._nothing)
        ends = torch.stack([seen[0], -seen[0]])
        torch.minimum(self._ends, torch.where(applied, ends, self._unseen), out=self._ends)

    def take(self) -> dict[str, float | None]:
        """Means of loss, grad_norm and the metrics, None where every step was skipped, and starts
        anew. Reads the device."""
        loss, norm, count, *measured = self.tensor.tolist()
        self.tensor.zero_()
        names = ("loss", "grad_norm", *self.metrics)
        return {n: v / count if count else None for n, v in zip(names, (loss, norm, *measured))}

    def loss_range(self) -> tuple[float, float] | None:
        """Least and greatest loss of a step since the process began the run; None where all were
        skipped. Reads the device."""
        low, negative = self._ends.tolist()
        return None if math.isinf(low) else (low, -negative)
