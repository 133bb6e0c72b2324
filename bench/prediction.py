"""Predicted against measured time of the whole step on this CPU.

The rates that the prediction rests on are measured right before and right after the steps, with
the operators that the formulation runs; the prediction is the mean of both.
"""

import statistics
import time

import torch

from bench import step
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.planning.counter import count_step
from eva_fast.planning.cpu import measure_cpu
from eva_fast.planning.devices import Device
from eva_fast.planning.roofline import (
    Prediction,
    optimizer_seconds,
    predict_step,
)
from eva_fast.planning.students import parameter_count

FORMULATIONS = {"official": "reference", "tuned": "tuned", "eva_fast": "eva_fast"}


def _rates(formulation: str) -> Device:
    """Measured anew, whatever was measured before in this process."""
    measure = measure_cpu.__wrapped__
    return measure(torch.get_num_threads(), own=formulation == "eva_fast")


def _predict(formulation: str, shape: Shape, device: Device) -> Prediction:
    count = count_step(
        formulation, shape.sizes, shape.batch, dtype=shape.dtype, device=shape.device
    )
    update = optimizer_seconds(formulation, parameter_count(shape.sizes), device, "float32")
    return predict_step(count, device, {"optimizer": update})


def compare(formulation: str, shape: Shape, kit: Kit, rounds: int = 5) -> dict:
    """One line of the table of predictions: seconds and ratio, with the parts predicted."""
    torch.manual_seed(0)
    variant = step.make(FORMULATIONS[formulation], shape, kit)
    for _ in range(2):
        variant.call()
    before, samples = _rates(formulation), []
    for _ in range(rounds):
        start = time.perf_counter()
        variant.call()
        samples.append(time.perf_counter() - start)
    predictions = [_predict(formulation, shape, d) for d in (before, _rates(formulation))]
    predicted = statistics.mean(p.seconds for p in predictions)
    measured = statistics.median(samples)
    return {
        "formulation": formulation,
        "shape": shape.label,
        "batch": shape.batch,
        "measured_seconds": measured,
        "predicted_seconds": predicted,
        "predicted_over_measured": predicted / measured,
        "predicted_parts": {k: v for k, v in predictions[-1].parts.items() if v},
    }
