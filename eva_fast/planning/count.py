"""What a count holds: the operators of a step in their order, and how they grow with the batch."""

from dataclasses import dataclass, replace

import torch

from eva_fast.model import Sizes


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator at one shape. Bytes and FLOPs are of one call."""

    phase: str
    """forward, backward or optimizer."""
    name: str
    """The dispatcher's name, `mm` or `eva_fast::add_layer_norm`."""
    part: str
    """The share of the step it belongs to: see `formulas.part_of`."""
    flops: int
    bytes: int
    kernels: int
    """Device kernels it runs as, where known; else 1."""
    dtype: str = ""
    """Of the first result: what the arithmetic is done in."""
    elements: int = 0
    """Elements that its results have."""

    @property
    def flash(self) -> bool:
        """Whether this is attention as one operator."""
        return self.part == "attention" and bool(self.flops) and self.name != "bmm"


@dataclass(frozen=True, slots=True)
class StepCount:
    """What one step of a formulation does, operator by operator in the order they run."""

    formulation: str
    sizes: Sizes
    batch: int
    masked: int
    """Masked patches an image."""
    dtype: torch.dtype
    operators: tuple[Operator, ...]
    saved_bytes: int = 0
    parameters: int = 0
    """That train."""
    needed_flops: int = 0
    """Arithmetic that the step needs, nothing computed again: the numerator of MFU."""

    def total(self, what: str, **chosen: str) -> int:
        """Sum of `flops`, `bytes` or `kernels`, or number of `launches`, over the operators whose
        fields equal `chosen` (phase, part, name)."""
        return sum(
            1 if what == "launches" else getattr(op, what)
            for op in self.operators
            if all(getattr(op, k) == v for k, v in chosen.items())
        )

    @property
    def flops(self) -> int:
        return self.total("flops")

    @property
    def bytes(self) -> int:
        return self.total("bytes")

    @property
    def launches(self) -> int:
        return self.total("launches")

    def summary(self) -> dict:
        """The figures an image, and launches a step, as plain numbers."""
        scale = 1 / self.batch
        return {
            "formulation": self.formulation,
            "batch": self.batch,
            "dtype": str(self.dtype).removeprefix("torch."),
            "tflop_per_image": self.flops * scale / 1e12,
            "gb_touched_per_image": self.bytes * scale / 1e9,
            "gemm_gb_per_image": self.total("bytes", part="gemm") * scale / 1e9,
            "mb_saved_per_image": self.saved_bytes * scale / 1e6,
            "launches": self.launches,
            "kernels": self.total("kernels"),
        }


def at_batch(batch: int, two: StepCount, three: StepCount) -> StepCount:
    """The count of `batch` images from those of 2 and of 3. ValueError where their operators are not
    the same."""
    return replace(
        two,
        batch=batch,
        operators=along(two.operators, three.operators, batch),
        saved_bytes=line(two.saved_bytes, three.saved_bytes, batch),
        needed_flops=line(two.needed_flops, three.needed_flops, batch),
    )


def line(two: int, three: int, batch: int) -> int:
    """The value at `batch` of the straight line through those at 2 and 3."""
    return two + (batch - 2) * (three - two)


def along(
    two: tuple[Operator, ...], three: tuple[Operator, ...], batch: int
) -> tuple[Operator, ...]:
    """The operators of `batch` images from those of 2 and of 3."""
    return tuple(
        replace(
            a,
            flops=line(a.flops, b.flops, batch),
            bytes=line(a.bytes, b.bytes, batch),
            elements=line(a.elements, b.elements, batch),
        )
        for a, b in zip(two, three, strict=True)
    )
