"""What is trained: both libraries' options for the same student, teacher and photographs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PLAIN_VIEW: dict[str, Any] = dict(color_jitter=None, random_gray_scale=None, gaussian_blur=None)
"""Their views as a crop and a flip alone, as ours are."""
PLAIN_RUN: dict[str, Any] = dict(crop_scale=(0.14, 1.0), drop_path=0.0)
"""Ours with their default crops, and no dropped paths."""
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
"""By our name, theirs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A student and a teacher, and how each library is asked to train it."""

    name: str
    title: str
    student: str
    """The same name in both libraries."""
    teacher: str
    """Its name in theirs, without values."""
    teacher_file: str
    """Ours tells by the name what is in it, where the tensors do not."""
    dropped: tuple[str, ...] = ()
    """Beginnings of tensors' names that our file leaves out."""
    student_options: dict[str, int] = field(default_factory=dict)
    """Sizes of the student, by the name that its builder takes in both."""
    method: str = "distillationv2"
    method_options: dict[str, Any] = field(default_factory=lambda: dict(n_teacher_blocks=1))
    their_options: dict[str, Any] = field(
        default_factory=lambda: dict(optim="adamw", transform_args=PLAIN_VIEW)
    )
    our_options: dict[str, Any] = field(default_factory=lambda: dict(PLAIN_RUN))
    batch_size: int = 16

    def ours(self, folder: Path, precision: str, workers: int, steps: int) -> dict[str, Any]:
        """Options of `eva_fast.pretrain`. folder: with photographs and teachers."""
        return dict(
            data=str(folder / "photographs"), objective="fd", model=self.student,
            teacher=str(folder / "ours" / self.teacher_file), batch_size=self.batch_size,
            steps=steps, workers=workers, precision=precision, device="cpu",
            **self.student_options, **self.our_options,
        )  # fmt: skip

    def theirs(self, folder: Path, precision: str, workers: int, steps: int) -> dict[str, Any]:
        """Options of `lightly_train.pretrain`."""
        options: dict[str, Any] = dict(
            data=str(folder / "photographs"), method=self.method, model=self.student,
            method_args=dict(
                teacher=self.teacher, teacher_weights=str(folder / "theirs" / self.teacher_file),
                **self.method_options,
            ),
            batch_size=self.batch_size, num_workers=workers, epochs=1, accelerator="cpu",
            precision=PRECISIONS[precision], trainer_args=dict(max_steps=steps),
            **self.their_options,
        )  # fmt: skip
        if self.student_options:
            options["model_args"] = dict(self.student_options)
        return options


VITS, CONVNEXT = "dinov2/vits14-notpretrained", "dinov3/convnext-tiny-notpretrained"
CASES = {
    case.name: case
    for case in (
        Case(
            name="vit", title="ViT-Ti/14 from DINOv2 ViT-S/14, plain views",
            student="timm/vit_tiny_patch16_224", student_options=dict(patch_size=14),
            teacher=VITS, teacher_file="dinov2_vits14.pth", batch_size=8,
        ),
        Case(
            name="resnet", title="ResNet-18 from DINOv3 ConvNeXt-T, plain views",
            student="torchvision/resnet18", teacher=CONVNEXT,
            teacher_file="convnext_tiny_dinov3.pth", dropped=("norm.", "norms."),
        ),
        Case(
            name="defaults", title="ResNet-18 from DINOv2 ViT-S/14, each by its own defaults",
            student="torchvision/resnet18", teacher=VITS, teacher_file="dinov2_vits14.pth",
            method="distillation", method_options={}, their_options={}, our_options={},
        ),
    )
}  # fmt: skip
