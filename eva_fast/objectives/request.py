"""What an objective asks of the frozen teacher, and the call that answers it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.data import Field
from eva_fast.data.config import DataConfig
from eva_fast.errors import UsageError
from eva_fast.objectives.setting import Setting

Ask = Callable[[Any], Tensor | None]
TEACHERS_VIEW = "teacher_images"
"""The field of the teacher's images where they are not the student's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Which of the teacher's features an objective compares with."""

    rows: Literal["masked", "all"] = "masked"
    """masked: [M,C], row-major over (image, masked patch). all: [B,N,C]."""
    cls: bool | Literal["optional"] = False
    """Whether the CLS token's row comes first: all rows are [B,1+N,C]. optional: where the teacher has
    one, which its `cls` says."""
    point: Literal["proj", "norm", "code"] = "proj"
    """proj: as the teacher gives features to others (CLIP: after `ln_post`, times `proj`); norm:
    after its own last norm; code: indices of a tokenizer, int64, `dim` of them."""
    norm_after: Literal["none", "layer_norm", "calibrated"] = "none"
    """layer_norm: each row to mean 0 and deviation 1 over its channels, without weights, eps 1e-5.
    calibrated: each channel to mean 0 and deviation 1, measured once at the start."""

    @property
    def calibrated(self) -> bool:
        return self.norm_after == "calibrated"


def open_teacher(given: Any, request: Request | None, setting: Setting) -> nn.Module | None:
    """The teacher that answers `request`, frozen, on the run's device and in its dtype; None where
    nothing is asked.

    given: what `eva_fast.load_teacher` takes, or a module. ValueError where it cannot give what is
    asked, or is of another grid than the student.
    """
    if request is None:
        return None
    if isinstance(given, nn.Module):
        _check_module(given, request, setting.sizes.grid)
        teacher = given.to(setting.device).eval()
    else:
        from eva_fast.teachers import load_teacher

        dtype = setting.compute_dtype
        teacher = load_teacher(
            given, grid=setting.sizes.grid, device=str(setting.device), whiten=request.calibrated,
            dtype=None if dtype == torch.float32 else dtype,
            point="norm" if request.point == "norm" else "proj", cls=request.cls,
        )  # fmt: skip
    _check_answers(teacher, request)
    see_channels(teacher, setting.config.data, setting.config.teacher.teacher_channels)
    return teacher


def see_channels(teacher: nn.Module, data: DataConfig, chosen: Sequence[int] | None) -> None:
    """Has a teacher see the run's images where they have other than three channels: those of the option
    `teacher_channels`. UsageError where nothing says which three."""
    count = data.channels
    if count == 3:
        return
    if (
        getattr(teacher, "channels", 3) == count
    ):  # a module of one's own that takes them as they are
        return
    see = getattr(teacher, "see", None)
    name = getattr(teacher, "name", type(teacher).__name__)
    if chosen is None and count == 1:
        chosen = (0, 0, 0)
    if see is None or chosen is None:
        raise UsageError(
            f"teacher {name!r} sees three channels, and the images have {count}: say which three with "
            f"teacher_channels, for example 0,1,{min(2, count - 1)}"
            + ("" if see else "; a module of your own needs `channels`, how many it takes")
        )
    if len(chosen) != 3 or not all(0 <= n < count for n in chosen):
        raise UsageError(
            f"teacher_channels are three numbers from 0 to {count - 1}, got {tuple(chosen)}"
        )
    see(chosen, *data.statistics)


def answer(teacher: nn.Module | None, request: Request | None) -> Ask:
    """The function batch -> target of a training step; it gives None where nothing is asked."""
    if teacher is None or request is None:
        return lambda batch: None
    masked = request.rows == "masked"

    @torch.no_grad()
    def ask(batch: Any) -> Tensor:
        images = teachers_view(batch)
        rows = teacher(images, batch.mask) if masked else teacher(images)
        return F.layer_norm(rows, rows.shape[-1:]) if request.norm_after == "layer_norm" else rows

    return ask


def teachers_view(batch: Any) -> Tensor:
    """The images that the teacher sees: the student's, unless the batch has others for it."""
    return getattr(batch, TEACHERS_VIEW, batch.images)


def check_sample(request: Request | None, fields: Sequence[Field]) -> None:
    """ValueError where a sample lacks what the request needs."""
    names = [field.name for field in fields]
    if request is not None and request.rows == "masked" and "mask" not in names:
        raise ValueError(
            "the objective asks for the teacher's masked rows, but its sample has no field `mask`, "
            f"only {', '.join(names)}"
        )


def _check_module(teacher: nn.Module, request: Request, grid: tuple[int, int]) -> None:
    if not hasattr(teacher, "dim"):
        raise UsageError(
            "a teacher module needs `dim`, its feature width, and to be called as "
            "teacher(images, mask=None) -> [B,N,dim] or [masked rows,dim]"
        )
    if request.calibrated and not hasattr(teacher, "calibrate"):
        raise UsageError("whiten=True needs a teacher of load_teacher, or one with `calibrate`")
    own = getattr(teacher, "grid", grid)
    if tuple(own) != grid:
        raise UsageError(
            f"the teacher's patches are a {own[0]}x{own[1]} grid, the student's {grid[0]}x{grid[1]}: "
            f"load_teacher(..., grid={grid}) makes one that fits"
        )


def _check_answers(teacher: nn.Module, request: Request) -> None:
    """A teacher says in `points` or `point` at which its features are, if not `proj`, and in `cls`
    whether the CLS row is among them, if it is."""
    name = getattr(teacher, "name", type(teacher).__name__)
    points = getattr(teacher, "points", (getattr(teacher, "point", "proj"),))
    has_cls = getattr(teacher, "cls", False)
    if request.cls is True and not has_cls:
        raise UsageError(f"the objective asks for a CLS row, which teacher {name!r} does not give")
    if request.cls is False and has_cls:
        raise UsageError(
            f"the objective asks for no CLS row, which teacher {name!r} gives: load_teacher(..., "
            "cls=False) makes one that fits"
        )
    if request.point == "code" and "code" not in points:
        raise UsageError(
            f"the objective predicts the codes of a tokenizer, and teacher {name!r} gives features: "
            "give it the folder of a run with objective='vqkd', or a file of the official VQ-KD"
        )
    if request.point not in points:
        raise UsageError(
            f"the objective asks for features at {request.point!r}; teacher {name!r} gives them at "
            f"{' and '.join(map(repr, points))}"
        )
