"""eva_fast: EVA pre-training of vision transformers, exact and fast.

Names are loaded on first use, so that `import eva_fast` and `eva-fast --help` stay quick.
"""

import importlib

__version__ = "0.1.0"

from eva_fast.recipes.pretrain import PretrainResult, pretrain

_HOME = {
    "create_model": "eva_fast.model",
    "load_teacher": "eva_fast.teachers",
    "BlockMasker": "eva_fast.data",
}
_MODULES = (
    "config",
    "data",
    "evaluate",
    "model",
    "native",
    "objectives",
    "ops",
    "plan",
    "teachers",
    "train",
    "weights",
)

__all__ = ["PretrainResult", "__version__", "pretrain", *_HOME, *_MODULES]


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"eva_fast.{name}")
    raise AttributeError(f"module 'eva_fast' has no attribute {name!r}")
