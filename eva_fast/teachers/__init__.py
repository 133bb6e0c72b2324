"""Frozen teachers: CLIP, SigLIP, DINOv2 and other ViTs, HOG, the package's MobileNetV2, any backbone of
torchvision or timm.

Names are loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eva_fast.teachers.base import Teacher
    from eva_fast.teachers.load import load_teacher

_HOME = {"Teacher": "base", "load_teacher": "load"}

__all__ = ["Teacher", "load_teacher"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
