"""The old path of `eva_fast.train.state`, for scripts that use it."""

from eva_fast.train.state import TrainState as Session

__all__ = ["Session"]
