"""What a step costs: counted on meta tensors, predicted for devices, planned for whole runs."""

import importlib

_HOME = {
    "Device": "rates",
    "DEVICES": "devices",
    "device": "devices",
    "Plan": "planner",
    "plan": "planner",
    "StepCount": "counter",
    "count_step": "counter",
    "Prediction": "roofline",
    "predict_step": "roofline",
    "to_text": "tables",
}

__all__ = [*_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'eva_fast.plan' has no attribute {name!r}")
    return getattr(importlib.import_module(f"eva_fast.plan.{_HOME[name]}"), name)
