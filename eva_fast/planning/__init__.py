"""What a step costs: counted on meta tensors, predicted for devices, planned for whole runs."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eva_fast.planning.count import StepCount
    from eva_fast.planning.counter import count_step
    from eva_fast.planning.devices import DEVICES, device
    from eva_fast.planning.planner import plan
    from eva_fast.planning.rates import Device
    from eva_fast.planning.result import Plan
    from eva_fast.planning.roofline import Prediction, predict_step
    from eva_fast.planning.tables import to_text

_HOME = {
    "Device": "rates",
    "DEVICES": "devices",
    "device": "devices",
    "Plan": "result",
    "plan": "planner",
    "StepCount": "count",
    "count_step": "counter",
    "Prediction": "roofline",
    "predict_step": "roofline",
    "to_text": "tables",
}

__all__ = [
    "DEVICES",
    "Device",
    "Plan",
    "Prediction",
    "StepCount",
    "count_step",
    "device",
    "plan",
    "predict_step",
    "to_text",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'eva_fast.planning' has no attribute {name!r}")
    return getattr(importlib.import_module(f"eva_fast.planning.{_HOME[name]}"), name)
