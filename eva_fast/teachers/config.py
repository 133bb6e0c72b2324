"""Options of the teacher."""

from dataclasses import dataclass

from eva_fast.options import TextOrObject


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig:
    """Teacher."""

    teacher: TextOrObject = "hog"
    """hog (no weights), a CLIP file or folder, openai/NAME, open_clip/NAME:TAG, hf/ORG/NAME,
    timm/NAME[:FILE], torchvision/NAME[:FILE]."""
    whiten: bool = False
    """Scale the teacher's features to mean 0 and standard deviation 1 a channel, measured over
    the first images of the run."""
