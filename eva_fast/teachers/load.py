"""`load_teacher`: a name or a path becomes a frozen teacher."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch

from eva_fast.errors import MissingFileError, UsageError
from eva_fast.model.vqkd import VqKd
from eva_fast.options import user_text
from eva_fast.teachers.backbone import student_teacher
from eva_fast.teachers.base import Teacher, check_grid
from eva_fast.teachers.builtin import BuiltinTeacher
from eva_fast.teachers.clip import ClipTeacher
from eva_fast.teachers.clip_file import no_tower, read_clip
from eva_fast.teachers.hog import HogTeacher
from eva_fast.teachers.swin import SwinTeacher
from eva_fast.teachers.swin_file import read_swin
from eva_fast.teachers.timm_backbone import timm_models, timm_teacher
from eva_fast.teachers.tokenizer import TokenizerTeacher
from eva_fast.teachers.torchvision_backbone import torchvision_models, torchvision_teacher
from eva_fast.teachers.transformers_backbone import transformers_teacher
from eva_fast.teachers.vit import VitTeacher
from eva_fast.teachers.vit_file import read_vit
from eva_fast.weights import (
    CODEBOOK,
    Weights,
    code_model,
    holds_backbone,
    hub,
    naming,
    read,
    read_backbone,
)
from eva_fast.weights.hints import clip_hints, read_json, timm_hints

logger = logging.getLogger(__name__)

POSSIBLE = (
    "possible teachers: 'builtin'; 'hog'; a local weight file or folder of CLIP, SigLIP, DINOv2, "
    "another ViT or a Swin (OpenAI .pt, open_clip, Hugging Face, timm, a run), or of a VQ-KD "
    "tokenizer; 'openai/ViT-L-14'; 'open_clip/MODEL:TAG'; 'hf/ORG/NAME'; "
    "'timm/NAME' or 'timm/NAME:FILE'; 'torchvision/NAME' or 'torchvision/NAME:FILE'; a local "
    "torchvision file such as mobilenet_v2-b0353104.pth"
)
_FAMILIES = ("openai", "open_clip", "hf", "timm", "torchvision")


class Wish(NamedTuple):
    """What a teacher is to be like, whichever it is."""

    grid: tuple[int, int] | None
    whiten: bool
    point: str
    cls: bool
    """Whether features begin with the CLS token's, of a teacher that has one."""


def load_teacher(
    name_or_path: str | os.PathLike[str],
    *,
    grid: int | Iterable[int] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    whiten: bool = False,
    point: Literal["proj", "norm"] = "proj",
    cls: bool | Literal["optional"] = False,
) -> Teacher:
    """Load a frozen teacher.

    Args:
        name_or_path: "builtin"; "hog"; a weight file or folder of CLIP, SigLIP, DINOv2, another ViT
            (a run's folder too) or a Swin, or of a VQ-KD tokenizer, which gives codes;
            "openai/ViT-L-14", "open_clip/MODEL:TAG", "hf/ORG/NAME";
            "torchvision/NAME[:FILE]", "timm/NAME[:FILE]"; or a torchvision or timm weight file whose
            name begins with the model's name.
        grid: the student's (rows, columns); the teacher's input is resized to match. None: the
            teacher's own grid (HOG has none and needs it).
        device: where it computes.
        dtype: what it computes in; None: bfloat16 on a GPU, float32 elsewhere. HOG keeps float32.
        whiten: features get mean 0 and deviation 1 a channel after `teacher.calibrate(batches)`.
        point: "proj", the features that the network gives to others (CLIP: after `ln_post`, times
            `proj`), or "norm", those after its own last norm.
        cls: whether the CLS token's features come in front of all patches'; "optional": where the
            teacher has one.

    Returns:
        A `Teacher` with `.dim`, `.grid`, `.name`: `teacher(images, mask=None)`.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: unknown name, damaged or unsuitable weights, wrong hash, no network. No code
            from a weight file is ever run.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        kind = type(name_or_path).__name__
        raise UsageError(
            f"a teacher is a name, a path or a module, not a {kind}; the default is 'builtin'"
        )
    name = user_text(os.fspath(name_or_path))
    if point not in ("proj", "norm"):
        raise UsageError(f"a teacher gives features at 'proj' or 'norm', not at {point!r}")
    cells = check_grid(grid)
    wish = Wish(cells, whiten, point, bool(cls))
    family, _, rest = name.partition("/")
    teacher: Teacher
    if name == "builtin":
        teacher = BuiltinTeacher(cells, whiten)
    elif name == "hog":
        if cells is None:
            raise UsageError("teacher 'hog' needs grid=(rows, columns) of the student's patches")
        teacher = HogTeacher(cells, whiten)
    elif name and Path(name).exists():
        teacher = _from_path(name, Path(name), wish)
    elif family in _FAMILIES and rest:
        load = {
            "openai": _openai, "open_clip": _open_clip, "hf": _hugging_face, "timm": _timm,
            "torchvision": _torchvision,
        }[family]  # fmt: skip
        teacher = load(name, rest, wish)
    elif os.sep in name or Path(name).suffix in (".pt", ".pth", ".bin", ".safetensors"):
        raise MissingFileError(f"teacher {name!r} does not exist; {POSSIBLE}")
    else:
        raise UsageError(f"unknown teacher {name!r}; {POSSIBLE}")
    if cls is True and not teacher.cls:
        raise UsageError(f"teacher {name!r} gives no features of a CLS token")
    teacher = teacher.freeze(device, dtype)
    logger.info("teacher %s", teacher.extra_repr())
    return teacher


def _clip(name: str, weights: Weights, hints: dict[str, Any], wish: Wish) -> Teacher:
    config, state = read_clip(weights, hints)
    return ClipTeacher(name, config, state, *wish)


def _vit(name: str, weights: Weights, hints: dict[str, Any] | None, wish: Wish) -> Teacher:
    config, state = read_vit(weights, hints)
    return VitTeacher(
        name, config, state, wish.grid, wish.whiten, wish.cls and "cls_token" in state
    )


def _from_path(name: str, path: Path, wish: Wish) -> Teacher:
    weights = read(path)
    if holds_backbone(weights):
        return student_teacher(name, read_backbone(weights), wish.grid, wish.whiten)
    if CODEBOOK in weights:
        tokenizer = cast(VqKd, code_model(weights, weights.path, decodes=False))
        return TokenizerTeacher(name, tokenizer, wish.grid, wish.whiten)
    if naming.find(weights, naming.CLIP):
        return _clip(name, weights, clip_hints(weights), wish)
    if naming.find(weights, naming.SWIN):
        return SwinTeacher(name, *read_swin(weights), wish.grid, wish.whiten)
    config = read_json(weights.path.parent / "config.json")
    if architecture := config.get("architecture"):
        options = config.get("model_args") or {}
        if not isinstance(architecture, str) or not isinstance(options, dict):
            raise UsageError(f"the config.json beside {weights.path} names no model of timm's")
        return _timm_file(name, architecture, weights, wish, options)
    # torch hub's files are the model's name and a hash. Any other ending may stand behind a name:
    # timm's release files have many. Then it is the longest, since names begin with other names.
    filename = weights.path.name
    stem = filename.partition(".")[0]
    known = torchvision_models()
    for model in (stem, stem.rpartition("-")[0]):
        if model in known:
            return torchvision_teacher(name, model, weights, wish.grid, whiten=wish.whiten)
    if model := max((n for n in timm_models() if filename.startswith(n)), key=len, default=""):
        return _timm_file(name, model, weights, wish)
    if model := max((n for n in known if filename.startswith(n)), key=len, default=""):
        return torchvision_teacher(name, model, weights, wish.grid, whiten=wish.whiten)
    if naming.find(weights, naming.VIT):
        return _vit(name, weights, None, wish)
    if config.get("model_type"):
        return transformers_teacher(name, weights.path.parent, wish.grid, wish.whiten)
    raise no_tower(weights)


def _openai(name: str, rest: str, wish: Wish) -> Teacher:
    if rest.startswith("clip-"):  # Hugging Face's name of the same models
        return _hugging_face(name, f"openai/{rest}", wish)
    model = rest.replace("/", "-")  # OpenAI's own spelling is ViT-L/14
    weights, hints = hub.open_clip_weights(model, "openai", name)
    return _clip(name, weights, hints, wish)


def _open_clip(name: str, rest: str, wish: Wish) -> Teacher:
    model, _, tag = rest.partition(":")
    if not tag:
        open_clip = hub.library("open_clip", "open_clip_torch", name)
        tags = open_clip.list_pretrained_tags_by_model(model)
        known = f"of {model}: {', '.join(tags)}" if tags else "are listed by open_clip"
        raise UsageError(f"teacher {name!r} needs a tag, open_clip/MODEL:TAG; tags {known}")
    weights, hints = hub.open_clip_weights(model, tag, name)
    return _clip(name, weights, hints, wish)


def _hugging_face(name: str, rest: str, wish: Wish) -> Teacher:
    if len([part for part in rest.split("/") if part]) != 2:
        raise UsageError(f"teacher {name!r}: a Hugging Face model is named hf/ORG/NAME")
    return _from_path(name, hub.hub_folder(rest, name), wish)


def _torchvision(name: str, rest: str, wish: Wish) -> Teacher:
    model, _, source = rest.partition(":")
    hub.library("torchvision", "torchvision", name)
    if model not in torchvision_models():
        raise hub.unknown("torchvision model", model, torchvision_models())
    if _is_file(source):
        return torchvision_teacher(name, model, read(Path(source)), wish.grid, whiten=wish.whiten)
    weights, size = hub.torchvision_weights(model, source or None, name)
    return torchvision_teacher(name, model, weights, wish.grid, size, wish.whiten)


def _timm(name: str, rest: str, wish: Wish) -> Teacher:
    model, _, source = rest.partition(":")
    timm = hub.library("timm", "timm", name)
    if not timm.is_model(model.partition(".")[0]):
        raise hub.unknown("timm model", model, timm.list_models())
    if source:
        return _timm_file(name, model, read(Path(source)), wish)
    try:
        config = timm.get_pretrained_cfg(model)
    except RuntimeError:  # the tag after the dot is none of the model's
        config = None
    if config is None or not config.hf_hub_id:
        raise hub.unknown("timm weights", model, timm.list_pretrained())
    folder = hub.hub_folder(config.hf_hub_id, name, config.hf_hub_filename)
    filename = config.hf_hub_filename
    weights = read(folder / filename if filename else folder)
    return _timm_file(name, model, weights, wish)


def _timm_file(
    name: str,
    model: str,
    weights: Weights,
    wish: Wish,
    options: dict[str, Any] | None = None,
) -> Teacher:
    timm = hub.library("timm", "timm", name)
    if not timm.is_model(model.partition(".")[0]):
        raise hub.unknown("timm model", model, timm.list_models())
    architecture = model.partition(".")[0]
    if naming.find(weights, naming.CLIP):
        config = timm.get_pretrained_cfg(architecture)
        hints = timm_hints(model, config.to_dict() if config else {})
        return _clip(name, weights, hints, wish)
    if naming.find(weights, naming.SWIN):
        return SwinTeacher(name, *read_swin(weights), wish.grid, wish.whiten)
    if wish.cls and (found := naming.find(weights, naming.VIT)) and found[0] is naming.vit.TIMM:
        config = timm.get_pretrained_cfg(architecture)
        hints = timm_hints(model, config.to_dict() if config else {})
        return _vit(name, weights, hints, wish)
    return timm_teacher(name, architecture, weights, wish.grid, wish.whiten, options)


def _is_file(source: str) -> bool:
    """A source after the colon is a file unless it looks like the name of a weights entry."""
    return bool(source) and (os.sep in source or "." in source or Path(source).exists())
