"""Training: the loop, its optimiser, schedule, checkpoints, guard and telemetry."""

from eva_fast.train.loop import Plan, train
from eva_fast.train.optimizer import decay_groups, make_optimizer
from eva_fast.train.schedule import learning_rate
from eva_fast.train.session import Session

__all__ = ["Plan", "Session", "decay_groups", "learning_rate", "make_optimizer", "train"]
