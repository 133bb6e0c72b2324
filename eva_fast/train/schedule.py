"""Learning rate as a pure function of the step."""

import math


def learning_rate(
    step: int, *, total: int, warmup: int, peak: float, minimum: float, start: float = 0.0
) -> float:
    """EVA-01's schedule: `warmup` steps linearly from `start` to `peak`, both ends included, then a
    half cosine that would reach `minimum` at step `total`. `step` counts from 0."""
    if step < warmup:
        return start + (peak - start) * step / max(warmup - 1, 1)
    progress = (step - warmup) / max(total - warmup, 1)
    return minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * min(progress, 1.0)))
