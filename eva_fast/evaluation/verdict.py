"""What the figures of an evaluation say in plain words, and how sure they are."""

import math
from collections.abc import Sequence

from eva_fast.evaluation.result import Scores

RANDOM = "random init"
NAMES = {"knn": "k-NN", "linear": "the linear probe"}
SURE = 2.0  # standard errors of a difference


def binomial_error(accuracy: float, count: int) -> float:
    """Binomial standard error of an accuracy over `count` images, both in percent."""
    share = accuracy / 100
    return 100 * math.sqrt(share * (1 - share) / count)


def verdicts(rows: Sequence[Scores], probes: Sequence[str]) -> list[str]:
    """A sentence for every row before the teacher's that the student, the first row, is below.

    The error of a difference is that of independent samples; the images are the same, which makes it
    smaller than this.
    """
    student, *others = rows
    found = []
    for other in others:
        if other.features.startswith("teacher "):
            continue
        for probe in probes:
            lack = other.accuracy[probe] - student.accuracy[probe]
            if lack <= 0:
                continue
            error = math.hypot(other.error[probe], student.error[probe])
            chance = "" if lack > SURE * error else ", which may be chance"
            found.append(
                f"the student is below {_named(other.features)} on {NAMES[probe]}: "
                f"{student.accuracy[probe]:.1f} against {other.accuracy[probe]:.1f} %, "
                f"{lack:.1f} \u00b1 {error:.1f} points{chance}"
            )
    return found


def _named(features: str) -> str:
    return "its own random initial values" if features == RANDOM else features
