"""Frozen teachers: CLIP image towers, HOG, and any torchvision or timm backbone."""

from eva_fast.teachers.base import Teacher
from eva_fast.teachers.load import load_teacher

__all__ = ["Teacher", "load_teacher"]
