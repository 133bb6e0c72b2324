"""Outputs of the official codes, and the check of any such file: `python -m tests.golden FILE...`.

A file's kind is the start of its name, `KIND_REST.SUFFIX`; `KINDS` says which module checks it. A
module has `check(path)`, which yields a `Check` for every quantity the file holds; sizes come from
the file's metadata, so files of other sizes are checked by the same code. A new kind is one module
here and one line in `KINDS`.
"""

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

KINDS = {
    "eva": "eva", "clip": "clip", "mae": "mae", "mask_stats": "mask_stats", "vqkd": "vqkd",
    "fd_swin": "fd_swin", "fd_vit": "fd_vit",
}  # fmt: skip
FOLDER = Path(__file__).parent


class Check(NamedTuple):
    """The worst error of one quantity, and what it may be."""

    what: str
    error: float
    bound: float

    @property
    def ok(self) -> bool:
        return self.error <= self.bound  # False for NaN


def kind_of(path: str | Path) -> str | None:
    """The kind of a file by its name; None where there is none of that name."""
    name = Path(path).name
    return next((kind for kind in KINDS if name.startswith(f"{kind}_")), None)


def check(path: str | Path) -> Iterator[Check]:
    """All checks of a file. ValueError for a file of no known kind."""
    kind = kind_of(path)
    if kind is None:
        raise ValueError(f"{path} is of no known kind: names begin with {', '.join(KINDS)}")
    yield from importlib.import_module(f"tests.golden.{KINDS[kind]}").check(Path(path))


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file; ValueError where it is none."""
    try:
        with safe_open(path, "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"no safetensors file: {error}") from None


def worst(errors: dict[str, float]) -> tuple[str, float]:
    """(name, error) of the largest; a NaN counts as larger than any number."""
    name = max(errors, key=lambda n: math.inf if math.isnan(errors[n]) else errors[n])
    return name, errors[name]


def largest(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    return (a.detach().double() - b.double().view_as(a)).abs().max().item()


def relative(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of `b`."""
    a, b = a.detach().double(), b.double().view_as(a)
    return ((a - b).norm() / b.norm().clamp_min(1e-12)).item()
