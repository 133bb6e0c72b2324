"""The student ViT: `create_model` builds one by name or by sizes.

Names are loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eva_fast.model.registry import create_model
    from eva_fast.model.sizes import LONG, PRESETS, ModelSizes, sizes_of
    from eva_fast.model.vit import EvaViT

_HOME = {
    "create_model": "registry",
    "EvaViT": "vit",
    "LONG": "sizes",
    "PRESETS": "sizes",
    "ModelSizes": "sizes",
    "sizes_of": "sizes",
}

__all__ = ["LONG", "PRESETS", "EvaViT", "ModelSizes", "create_model", "sizes_of"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
