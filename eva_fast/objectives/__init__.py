"""Objectives: what a student is trained towards. One file each, and one line in `OBJECTIVES`.

An objective from elsewhere is a class derived from `Objective` or an instance of one, given as
`eva_fast.pretrain(objective=...)`. Names are loaded on first use.
"""

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from eva_fast.errors import UsageError

if TYPE_CHECKING:
    from eva_fast.objectives.base import Objective
    from eva_fast.objectives.request import Request
    from eva_fast.objectives.setting import Setting

OBJECTIVES = {
    "eva": "eva_fast.objectives.eva:Eva",
    "fd": "eva_fast.objectives.feature_distillation:FeatureDistillation",
    "mae": "eva_fast.objectives.mae:Mae",
    "pixels": "eva_fast.objectives.pixels:Pixels",
    "vqkd": "eva_fast.objectives.vqkd:TrainTokenizer",
    "tokens": "eva_fast.objectives.tokens:Tokens",
}
_HOME = {
    "Objective": "eva_fast.objectives.base",
    "Setting": "eva_fast.objectives.setting",
    "Request": "eva_fast.objectives.request",
}

__all__ = ["OBJECTIVES", "Objective", "Request", "Setting", "open_objective"]


def open_objective(given: "str | Objective | type[Objective]") -> "Objective":
    """The objective of that name in `OBJECTIVES`, an instance of that class, or the one given.
    ValueError for anything else, with the nearest name."""
    from eva_fast.objectives.base import Objective

    if isinstance(given, str):
        if given not in OBJECTIVES:
            near = difflib.get_close_matches(given, OBJECTIVES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(OBJECTIVES)}"
            raise UsageError(f"unknown objective {given!r}; {hint}")
        module, _, name = OBJECTIVES[given].partition(":")
        given = getattr(importlib.import_module(module), name)
    found = given() if isinstance(given, type) else given
    if not isinstance(found, Objective):
        raise UsageError(
            "objective is a name, or a class derived from eva_fast.objectives.Objective or an "
            f"instance of one, not {type(found).__name__}"
        )
    return found


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'eva_fast.objectives' has no attribute {name!r}")
