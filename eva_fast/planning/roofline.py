"""Predicted time of a counted step: each operator takes the longer of its arithmetic and its memory
traffic on the device (Williams et al. 2009, Roofline), and the host issues them one by one.

Everything that leaves this file is a prediction. What it rests on: exact counts (`counter.py`),
data-sheet peaks or measured rates, and the efficiencies written down in `devices.py`.
"""

from dataclasses import dataclass

from eva_fast.errors import UsageError
from eva_fast.planning.count import Operator, StepCount
from eva_fast.planning.formulas import PARTS
from eva_fast.planning.rates import Device


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Predicted time of one step on one device."""

    device: str
    batch: int
    seconds: float
    """Of the whole step, the host's limit included."""
    parts: dict[str, float]
    """Device seconds by part of the step; without overlap they add up to the device's time."""
    host_seconds: float
    """Time the host needs to issue the step; it hides behind the device when shorter."""
    model_flops: int
    """Arithmetic the model needs, without recomputation: the numerator of MFU."""
    peak_flops: float

    @property
    def images_per_second(self) -> float:
        return self.batch / self.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: needed FLOPs a second over the device's peak."""
        return self.model_flops / self.seconds / self.peak_flops

    def summary(self) -> dict:
        """Plain numbers for JSON, labelled as what they are."""
        return {
            "kind": "predicted",
            "device": self.device,
            "batch": self.batch,
            "step_seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "mfu": self.mfu,
            "host_seconds": self.host_seconds,
            "share": {k: v / sum(self.parts.values()) for k, v in self.parts.items() if v},
        }


def operator_seconds(op: Operator, device: Device, dtype: str) -> float:
    """Device seconds of one operator: the longer of arithmetic and memory, and its launch. It
    computes in its own dtype (the official attention scores are float32), else in the step's."""
    arithmetic = 0.0
    if op.flops:
        rates = device.attention if op.flash else device.gemm
        if op.name == "bmm" and device.batched:
            rates = device.batched
        arithmetic = op.flops / (rates.get(op.dtype) or rates[dtype]).at(op.flops)
    special = next((r for word, r in device.special.items() if word in op.name), None)
    if special:
        arithmetic = max(arithmetic, op.elements / special.at(op.elements))
    return max(arithmetic, op.bytes / device.stream.at(op.bytes)) + device.launch_seconds


def part_seconds(count: StepCount, device: Device, phase: str | None = None) -> dict[str, float]:
    """Predicted device seconds by part of the step, of one phase or of all."""
    dtype = str(count.dtype).removeprefix("torch.")
    parts = dict.fromkeys(PARTS, 0.0)
    for op in count.operators:
        if phase in (None, op.phase):
            parts[op.part] += operator_seconds(op, device, dtype)
    return parts


def predict_step(
    count: StepCount,
    device: Device,
    extra: dict[str, float] | None = None,
) -> Prediction:
    """Predicted step from its count; `extra` adds device seconds to parts ("optimizer", "teacher").

    ValueError when the device has no rate for the step's dtype."""
    dtype = str(count.dtype).removeprefix("torch.")
    if dtype not in device.gemm:
        names = ", ".join(name.removesuffix("_e4m3fn") for name in device.gemm)
        raise UsageError(
            f"no {dtype.removesuffix('_e4m3fn')} rate for {device.title}: it has {names}"
        )
    parts = part_seconds(count, device)
    for part, seconds in (extra or {}).items():
        parts[part] += seconds
    host = device.host_seconds * count.launches
    return Prediction(
        device=device.name,
        batch=count.batch,
        seconds=max(sum(parts.values()), host),
        parts=parts,
        host_seconds=host,
        model_flops=count.needed_flops,
        peak_flops=device.peak_flops[dtype],
    )


# Bytes a parameter that clipping and AdamW move: (float32 training, 16-bit with float32 masters).
# One pass reads gradient, master and both moments and writes the last three (and the 16-bit copy);
# the norm reads the gradients once more. With fp8 no 16-bit copy is written. PyTorch's fused AdamW is
# one such pass plus a clipping pass; the unfused one passes over its operands some ten times.
OPTIMIZER_BYTES = {
    "official": (28 + 4 + 8 + 60, 26 + 4 + 8 + 60 + 6),
    "tuned": (28 + 4 + 8, 26 + 4 + 8 + 6),
    "eva_fast": (28 + 4, 28 + 2),
}


def optimizer_seconds(formulation: str, parameters: int, device: Device, dtype: str) -> float:
    """Predicted seconds to clip and update that many parameters on one device."""
    single, mixed = OPTIMIZER_BYTES[formulation]
    each = single if dtype == "float32" else mixed
    if dtype == "float8_e4m3fn":
        each -= 2
    moved = parameters * each
    return moved / device.resident.at(moved)


# Bytes a parameter that quantising moves: read (with the scale from the optimiser), written by rows
# and by columns, and most of these read again for their rows' lengths. One process quantises its
# float32 weights, once a step. Of several each quantises all weights whenever they come, in 16 bit,
# which are read for their scale first: in every micro-batch, and where a block is computed again.
QUANTISE_BYTES, QUANTISE_GATHERED_BYTES = 4 + 2 + 1, 2 + 2 + 2 + 1


def quantise_seconds(parameters: int, device: Device, gathered: bool) -> float:
    """Predicted seconds to quantise that many weights on one device, once."""
    moved = parameters * (QUANTISE_GATHERED_BYTES if gathered else QUANTISE_BYTES)
    return moved / device.resident.at(moved)
