"""eva_fast: EVA pre-training of vision transformers, exact and fast.

Names are loaded on first use, so that `import eva_fast` and `eva-fast --help` stay quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

from eva_fast.version import __version__

if TYPE_CHECKING:
    from eva_fast import (
        config,
        data,
        evaluate,
        model,
        native,
        objectives,
        ops,
        plan,
        teachers,
        train,
        weights,
    )
    from eva_fast.data import BlockMasker
    from eva_fast.model import create_model
    from eva_fast.recipes.export import export
    from eva_fast.recipes.pretrain import PretrainResult, pretrain
    from eva_fast.teachers import load_teacher

_HOME = {
    "pretrain": "eva_fast.recipes.pretrain",
    "PretrainResult": "eva_fast.recipes.pretrain",
    "create_model": "eva_fast.model",
    "export": "eva_fast.recipes.export",
    "load_teacher": "eva_fast.teachers",
    "BlockMasker": "eva_fast.data",
}
__all__ = [
    "BlockMasker",
    "PretrainResult",
    "__version__",
    "config",
    "create_model",
    "data",
    "evaluate",
    "export",
    "load_teacher",
    "model",
    "native",
    "objectives",
    "ops",
    "plan",
    "pretrain",
    "teachers",
    "train",
    "weights",
]

_MODULES = frozenset(__all__) - _HOME.keys() - {"__version__"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"eva_fast.{name}")
    raise AttributeError(f"module 'eva_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
