"""Training: the step, the loop, the optimiser, schedule, checkpoints, guard and telemetry.

Names are loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eva_fast.train.loop import train
    from eva_fast.train.optimizer import decay_groups, make_optimizer
    from eva_fast.train.schedule import RunLength, learning_rate
    from eva_fast.train.state import TrainState
    from eva_fast.train.step import TrainStep

_HOME = {
    "train": "loop",
    "decay_groups": "optimizer",
    "make_optimizer": "optimizer",
    "RunLength": "schedule",
    "learning_rate": "schedule",
    "TrainState": "state",
    "TrainStep": "step",
}

__all__ = [
    "RunLength",
    "TrainState",
    "TrainStep",
    "decay_groups",
    "learning_rate",
    "make_optimizer",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
