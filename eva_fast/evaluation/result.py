"""What an evaluation found, and the same as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """How good features of one kind are."""

    features: str
    """"student", "random init", "8x8 pixels" or "teacher NAME"."""
    dim: int
    """Their width."""
    accuracy: Mapping[str, float]
    """Percent, by probe."""
    error: Mapping[str, float]
    """Binomial standard errors of these, in points."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values: an accuracy is named PROBE, its error PROBE_error."""
        errors = {f"{probe}_error": value for probe, value in self.error.items()}
        return {"features": self.features, "dim": self.dim, **self.accuracy, **errors}

    def sentence(self) -> str:
        """All probes in a line."""
        return "  ".join(
            f"{probe} {value:.1f} \u00b1 {self.error[probe]:.1f} %"
            for probe, value in self.accuracy.items()
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Features of several kinds beside each other on the same images."""

    classes: tuple[str, ...]
    train: int
    """Images."""
    val: int
    """Images."""
    majority: float
    """Percent of the validation images in the largest class."""
    rows: tuple[Scores, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation(Comparison):
    """What `eva_fast.evaluate` found: the student's row first. Printed it is a table."""

    weights: Path
    data: str
    sizes: Mapping[str, Any]
    """Of the student."""
    probes: tuple[str, ...]
    verdicts: tuple[str, ...]
    """Sentences on what the student is below."""
    seconds: float
    """What the evaluation took."""

    @property
    def student(self) -> Scores:
        return self.rows[0]

    def to_dict(self) -> dict[str, Any]:
        """What eval.json holds."""
        return {
            "weights": str(self.weights),
            "data": self.data,
            "classes": list(self.classes),
            "train": self.train,
            "val": self.val,
            "majority": self.majority,
            "sizes": dict(self.sizes),
            "probes": list(self.probes),
            "results": [row.to_dict() for row in self.rows],
            "error": "binomial standard error over the validation images, in points",
            "verdicts": list(self.verdicts),
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        from eva_fast.evaluation.table import to_text

        return to_text(self)
