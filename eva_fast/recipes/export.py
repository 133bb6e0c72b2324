"""`eva-fast export`: weights of a run, finished or not, as other libraries load them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eva_fast import weights
from eva_fast.errors import MissingFileError, UsageError
from eva_fast.evaluation.students import (
    CONFIG,
    WEIGHTS,
    Student,
    find_weights,
    load_checkpoint,
    load_student,
    prepared_as,
    run_config,
    untrained,
)
from eva_fast.files import writing_to
from eva_fast.model import Backbone
from eva_fast.model.token_vit import TokenViT
from eva_fast.model.vqkd import VqKd
from eva_fast.options import user_path
from eva_fast.train import checkpoint

CPU = torch.device("cpu")
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def export(
    source: Path | str,
    out: Path | str | None = None,
    *,
    format: str = "official",
    img_size: int | None = None,
    patch_size: int | None = None,
    resize: str = "timm",
    dtype: str = "float32",
) -> weights.Exported:
    """Writes weights for another library and returns where they are and how to load them.

    Args:
        source: a run's folder (its final weights, or those of its newest whole checkpoint if it has
            not ended), one checkpoint, a weights file of any library, or another library's folder.
        out: the file, or for the formats that are one the folder, to write. By default
            model.FORMAT.safetensors or model.FORMAT/ in the run's folder.
        format: one of `eva_fast.weights.FORMATS`.
        img_size, patch_size: resize positions and patch convolution to these first.
        resize: how, one of `eva_fast.weights.RESIZES`.
        dtype: of the numbers, one of `DTYPES`; other than float32 for the format official alone.

    Raises FileNotFoundError where there is nothing to export, ValueError for a damaged checkpoint
    or a place that cannot be written to.
    """
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; possible are {', '.join(DTYPES)}")
    given: Path = user_path(source)
    path: Path = _beside(given, format) if out is None else user_path(out)
    _spare(path, given, format)
    model = _resized(_student(given), img_size, patch_size, resize)
    with writing_to(path):
        if not isinstance(model, VqKd | TokenViT):
            return weights.export(model, path, format, DTYPES[dtype], _statistics(given, model))
        if dtype != "float32":
            raise UsageError("tokenizers and students of tokens are exported in float32")
        return weights.export_codes(model, path, format)


def _statistics(source: Path, model: Student) -> weights.ChannelStatistics | None:
    """What a run's options say of images with other than three channels; None of three, and where
    there are no options."""
    channels = getattr(model.sizes, "channels", 3)
    if (source / checkpoint.STATE).is_file():
        options = checkpoint.options_in(source)
    else:
        options = run_config(source if source.is_file() else source / WEIGHTS)
    if channels == 3 or options.get("channels") != channels:
        return None
    return prepared_as(options).statistics


def _student(source: Path) -> Student:
    folder = source if (source / checkpoint.STATE).is_file() else None
    unfinished = source / "checkpoints"
    if folder is None and unfinished.is_dir() and not (source / WEIGHTS).is_file():
        folder = checkpoint.newest(unfinished)
        if folder is None:
            raise MissingFileError(f"{source} holds neither final weights nor a whole checkpoint")
    if folder is None:
        return load_student(find_weights(source), CPU)
    return load_checkpoint(folder, CPU)


def _beside(source: Path, format: str) -> Path:
    """The place in a run's folder for its weights in another format."""
    folder, stem = (source.parent, source.stem) if source.is_file() else (source, "model")
    if folder.is_dir() and not (folder / CONFIG).is_file():
        raise UsageError(
            f"{source} is neither the folder of a run nor in one: say where to write with out="
        )
    suffix = "" if format in weights.FOLDERS else ".safetensors"
    return folder / f"{stem}.{format}{suffix}"


def _spare(path: Path, source: Path, format: str) -> None:
    """Refuses to write over a run's own weights, or over what is exported."""
    if format in weights.FOLDERS and (path / CONFIG).is_file():
        raise UsageError(
            f"{path} is a run's folder, whose own {WEIGHTS} stays: choose another out="
        )
    own = source / WEIGHTS if source.is_dir() else source
    for taken in (own, source):
        if path.exists() and taken.exists() and path.samefile(taken):
            raise UsageError(f"{path} is what is to be exported: choose another out=")


def _resized(model: Student, img_size: int | None, patch_size: int | None, resize: str) -> Student:
    if isinstance(model, VqKd | TokenViT):
        if img_size or patch_size:
            raise UsageError("tokenizers and students of tokens are exported at their own size")
        return model
    if isinstance(model, Backbone):
        if img_size or patch_size:
            raise UsageError(
                f"{model.sizes.name} is exported at its own size: leave img_size and patch_size out; "
                "its library fits it to others when it loads"
            )
        return model
    old = model.sizes
    sizes = replace(old, img_size=img_size or old.img_size, patch_size=patch_size or old.patch_size)
    if sizes == old:
        return model
    new: Any = untrained(model, CPU, sizes)
    new.load_official(weights.fit(model.official_state_dict(), sizes, resize))
    return new
