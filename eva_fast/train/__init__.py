"""Training: the step, the loop, the optimiser, schedule, checkpoints, guard and telemetry."""

from eva_fast.train.loop import train
from eva_fast.train.optimizer import decay_groups, make_optimizer
from eva_fast.train.schedule import RunLength, learning_rate
from eva_fast.train.state import TrainState
from eva_fast.train.step import TrainStep

__all__ = [
    "RunLength",
    "TrainState",
    "TrainStep",
    "decay_groups",
    "learning_rate",
    "make_optimizer",
    "train",
]
