"""Columns of any length as at most some hundred points: what a screen can show of them, and what a page
can carry.

    a point = the mean of so many lines one after the other, with the least and the most of them

so a spike of one line stays visible in the band that those two make. A run that went back begins a new
group of lines there, with a gap before it.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

POINTS = 600
MOST_GAPS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Thinned:
    """float64 [points] for each column."""

    mean: dict[str, np.ndarray]
    least: dict[str, np.ndarray]
    most: dict[str, np.ndarray]
    lines: int
    """Lines in a point, at most."""


def thin(columns: Mapping[str, np.ndarray], points: int = POINTS) -> Thinned:
    """About `points` points of columns that hold a `step`; NaN is no value."""
    step = columns["step"]
    breaks = np.flatnonzero(np.diff(step) <= 0) + 1
    if len(breaks) > MOST_GAPS:
        breaks = breaks[:0]
    size = max(1, -(-len(step) // points))
    edges = [0, *breaks.tolist(), len(step)]
    starts = np.concatenate([np.arange(a, b, size) for a, b in itertools.pairwise(edges)])
    gaps = np.searchsorted(starts, breaks)

    def put(values: np.ndarray) -> np.ndarray:
        return np.insert(values, gaps, np.nan)

    mean, least, most = {}, {}, {}
    for name, column in columns.items():
        known = np.isfinite(column)
        count = np.add.reduceat(known, starts, dtype=np.float64)
        total = np.add.reduceat(np.where(known, column, 0.0), starts)
        mean[name] = put(np.divide(total, count, out=np.full(len(starts), np.nan), where=count > 0))
        least[name] = put(np.fmin.reduceat(column, starts))
        most[name] = put(np.fmax.reduceat(column, starts))
    return Thinned(mean=mean, least=least, most=most, lines=size)


__all__ = ["POINTS", "Thinned", "thin"]
