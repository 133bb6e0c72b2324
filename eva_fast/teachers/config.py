"""Options of the teacher."""

from dataclasses import dataclass

from eva_fast.options import TextOrObject, option, user_text

BUILTIN = "builtin"


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig:
    """Teacher."""

    teacher: TextOrObject = BUILTIN
    """builtin (first stages of an ImageNet MobileNetV2, in the package), hog (no weights), a file or
    folder of CLIP, SigLIP, DINOv2 or another ViT, openai/NAME, open_clip/NAME:TAG, hf/ORG/NAME,
    timm/NAME[:FILE], torchvision/NAME[:FILE]."""
    teacher_moved: bool = option(False, resume=True)
    """The run goes on with the same teacher in another place; only needed where its weights do not
    tell that it is the same (another precision, a run of an earlier version)."""
    whiten: bool | None = None
    """Scale the teacher's features to mean 0 and standard deviation 1 a channel, measured over
    the first images of the run; by default for the teacher builtin alone."""

    teacher_channels: tuple[int, ...] | None = None
    """With images of other than three channels: which three of them, counted from 0, the teacher sees as
    red, green and blue; a single channel it sees as grey."""

    def __post_init__(self):
        object.__setattr__(self, "teacher", user_text(self.teacher))
