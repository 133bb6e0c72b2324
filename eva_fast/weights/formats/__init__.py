"""Students as other libraries load them: a file or folder, and the lines of Python that load it.

`FORMATS` are names and writers. Every library loads strictly what is written for it and then gives the
student's own features: all tokens after the last norm from `forward_features`, and, where it pools, the
mean of the patch tokens, which is what `eva-fast eval` judges. Mask token and prediction head are for
pre-training alone, so that only the official code, which has a place for them, gets them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from eva_fast.errors import UsageError
from eva_fast.model import Backbone, BeitViT, EvaViT, MaeEncoder, SwinV2
from eva_fast.weights.formats.backbone import write_network
from eva_fast.weights.formats.exported import ChannelStatistics, Exported
from eva_fast.weights.formats.folders import write_hf, write_hf_vit, write_open_clip
from eva_fast.weights.formats.official import write_official
from eva_fast.weights.formats.timm import (
    timm_model,
    write_timm,
    write_timm_beit,
    write_timm_swin,
    write_timm_vit,
)

__all__ = ["FOLDERS", "FORMATS", "ChannelStatistics", "Exported", "export"]

Writer = Callable[[EvaViT, Path], Exported]
FORMATS: dict[str, Writer] = {
    "official": lambda model, path: write_official(model, path, torch.float32),
    "timm": write_timm,
    "hf": write_hf,
    "hf-vit": write_hf_vit,
    "open_clip": write_open_clip,
}
FILES = ("official", "timm")
FOLDERS = ("hf", "hf-vit", "open_clip")
"""Formats of several files."""


def export(
    model: EvaViT | MaeEncoder | SwinV2 | BeitViT | Backbone,
    out: str | os.PathLike[str],
    format: str = "official",
    dtype: torch.dtype = torch.float32,
    statistics: ChannelStatistics | None = None,
) -> Exported:
    """Writes a student for another library.

    Args:
        format: "official" (the EVA-01 code: safetensors, or a checkpoint where `out` ends in .pt or
            .pth), "timm" (one file, either kind), "hf" (a folder of the Hugging Face hub for timm and
            transformers), "hf-vit" (the same for transformers' own `ViTModel`), "open_clip" (a folder
            whose image tower this is). MAE's encoder is written as the first two, in timm's names of a
            plain ViT; a Swin V2 as the first two, the official code being Feature Distillation's; a
            network of another library as the first two, which are one: that library's names.
        out: the file, or for the last three the folder; what it held under the same names is replaced.
        dtype: of the numbers; other than float32 for the official code alone, whose published files are
            in float16: the other libraries cast when they load.
        statistics: mean and deviation of each channel that images with other than three are prepared
            with; the folder of the format hf says them.

    UsageError for an unknown format or a folder's name that is a file's; OSError where it cannot be
    written.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown format {format!r}; possible are {', '.join(FORMATS)}")
    path = Path(out).absolute()
    if format in FOLDERS and path.exists() and not path.is_dir():
        raise UsageError(f"format {format} is a folder, and {path} is a file; choose another out=")
    channels = 3 if isinstance(model, SwinV2) else model.sizes.channels
    if channels != 3 and format == "open_clip":
        raise UsageError(
            f"open_clip reads images with three channels, and these have {channels}: the student is "
            f"written as {', '.join(name for name in FORMATS if name != format)}"
        )
    if channels != 3 and format == "hf" and statistics is None:
        raise UsageError(
            f"format hf says how images are prepared, and nothing says it of these with {channels} "
            "channels: export the run's folder, whose config.yaml does"
        )
    if not isinstance(model, EvaViT) and format not in FILES:
        kinds = {
            MaeEncoder: "MAE's encoder", SwinV2: "a Swin V2", BeitViT: "BEiT's ViT",
            Backbone: "a network of another library",
        }  # fmt: skip
        kind = kinds[type(model)]
        raise UsageError(
            f"format {format} is of EVA's student; {kind} is written as {' or '.join(FILES)}"
        )
    if dtype != torch.float32 and (format != "official" or isinstance(model, Backbone)):
        raise UsageError(f"dtype is of EVA's own code; for other libraries {format} is in float32")
    if isinstance(model, EvaViT) and format in ("timm", "hf", "open_clip"):
        timm_model(model)  # says what timm has no place for before anything is written
    if isinstance(model, Backbone):
        return write_network(model, path)
    if isinstance(model, MaeEncoder):
        return write_timm_vit(model, path, dtype)
    if format == "official":
        return write_official(model, path, dtype)
    if isinstance(model, BeitViT):
        return write_timm_beit(model, path)
    if isinstance(model, SwinV2):
        return write_timm_swin(model, path)
    if format == "hf":
        return write_hf(model, path, statistics)
    return FORMATS[format](model, path)
