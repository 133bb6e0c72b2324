"""What a teacher costs, from its sizes alone: a frozen network on meta tensors, counted like a step.

By name, without weights and without a network: builtin, hog, the CLIP towers of openai/ and open_clip/,
timm/NAME, torchvision/NAME. A file or folder on this disk is read for its sizes.
"""

import copy
import functools
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eva_fast.errors import UsageError
from eva_fast.model.vqkd import VqKd, VqKdSizes
from eva_fast.teachers import load_teacher
from eva_fast.teachers.base import Teacher
from eva_fast.teachers.builtin import BuiltinTeacher
from eva_fast.teachers.clip import ClipConfig, ClipTeacher, ClipTower
from eva_fast.teachers.hog import HogTeacher
from eva_fast.teachers.timm_backbone import timm_models, timm_teacher
from eva_fast.teachers.tokenizer import TokenizerTeacher
from eva_fast.teachers.torchvision_backbone import torchvision_models, torchvision_teacher
from eva_fast.weights import hub
from eva_fast.weights.reader import Weights

log = logging.getLogger(__name__)
Grid = tuple[int, int]
# Radford et al. 2021, table 19: width, layers, heads, patch, native image side, projection.
OPENAI = {
    "ViT-B-32": (768, 12, 12, 32, 224, 512),
    "ViT-B-16": (768, 12, 12, 16, 224, 512),
    "ViT-L-14": (1024, 24, 16, 14, 224, 768),
    "ViT-L-14-336": (1024, 24, 16, 14, 336, 768),
}


@dataclass(frozen=True, slots=True)
class PlannedTeacher:
    """A teacher without values."""

    name: str
    dim: int
    """Width of a feature vector."""
    parameters: int
    module: nn.Module

    @property
    def bytes(self) -> int:
        """Of its weights."""
        return sum(p.nbytes for p in self.module.parameters())


def planned_teacher(
    given: Any,
    grid: Grid,
    dtype: torch.dtype,
    *,
    point: str = "proj",
    cls: bool = False,
    tokenizer: VqKdSizes | None = None,
) -> PlannedTeacher:
    """The teacher that `--teacher` names, on the student's grid, computing in `dtype`.

    tokenizer: sizes of a teacher of codes that is not there yet. UsageError where a teacher's sizes
    are not known without its weights, and for one that gives no codes where they are asked for.
    """
    if isinstance(given, nn.Module):
        module = copy.deepcopy(given).to("meta")
        dim = int(module.dim)  # type: ignore[arg-type]
    else:
        codes = tokenizer if point == "code" else None
        found = _teacher(str(given), grid) if codes is None else _codes(str(given), grid, codes)
        if isinstance(found, ClipTeacher) and (
            point == "norm" or cls
        ):  # others give what they have
            tower = found.tower
            own = replace(tower.config, grid=found.grid)
            found = ClipTeacher(found.name, own, tower.state_dict(), grid, False, point, cls)
        module = found.freeze("meta", dtype)
        dim = module.dim
    parameters = sum(p.numel() for p in module.parameters())
    return PlannedTeacher(str(getattr(module, "name", given)), dim, parameters, module)


def _codes(name: str, grid: Grid, sizes: VqKdSizes) -> Teacher:
    """The tokenizer of that name, or one of these sizes where there is none yet."""
    if Path(name).exists():
        found = load_teacher(name, grid=grid)
    elif name.partition("/")[0] in (*FAMILIES, "hf", "hog"):
        found = _teacher(name, grid)
    else:
        student = sizes.student
        assumed = f"VQ-KD {student.embed_dim} wide, {student.depth} blocks, {sizes.codes} codes"
        log.info("there is no tokenizer %r yet: planned with %s", name, assumed)
        with torch.device("meta"):
            return TokenizerTeacher(assumed, VqKd(sizes, decodes=False), grid)
    if "code" not in found.points:
        raise UsageError(f"teacher {name!r} gives no codes: name a run of the objective 'vqkd'")
    return found


def _teacher(name: str, grid: Grid) -> Teacher:
    if name == "builtin":
        return BuiltinTeacher(grid)
    if name == "hog":
        return HogTeacher(grid)
    if Path(name).exists():
        return load_teacher(name, grid=grid)
    if hugging_face := re.fullmatch(r"(?:hf/)?openai/clip-vit-(\w)\w+-patch(\d+)(-336)?", name):
        size, patch, large = hugging_face.groups("")
        return _teacher(f"openai/ViT-{size.upper()}-{patch}{large}", grid)
    family, _, rest = name.partition("/")
    model, _, source = rest.partition(":")
    if family in ("timm", "torchvision") and Path(source).is_file():
        return load_teacher(name, grid=grid)
    if family not in FAMILIES or not model:
        raise UsageError(
            f"the sizes of teacher {name!r} are not known without its weights. Give a file or folder on "
            "this disk, builtin, hog, openai/NAME, open_clip/NAME, timm/NAME or torchvision/NAME; "
            f"or one of its size, such as openai/{' or openai/'.join(OPENAI)}"
        )
    with torch.device("meta"):
        return FAMILIES[family](name, model, grid)


def _clip(name: str, model: str, grid: Grid) -> Teacher:
    """A CLIP tower by OpenAI's or open_clip's name: OpenAI's from a table, others as open_clip says."""
    short = model.replace("/", "-").replace("@", "-").removesuffix("px")
    if short in OPENAI:
        width, layers, heads, patch, side, dim = OPENAI[short]
        hidden = 4 * width
    else:
        library = hub.library("open_clip", "open_clip_torch", name)
        config = library.get_model_config(short)
        if config is None:
            raise hub.unknown("open_clip model", short, library.list_models())
        vision = config["vision_cfg"]
        if "timm_model_name" in vision or not isinstance(vision.get("layers"), int):
            raise UsageError(f"{name} is no plain CLIP vision transformer; name it as timm/NAME")
        width, layers, patch = vision["width"], vision["layers"], vision["patch_size"]
        side, dim = vision["image_size"], config["embed_dim"]
        heads = width // vision.get("head_width", 64)
        hidden = int(width * vision.get("mlp_ratio", 4.0))
    sizes = ClipConfig(
        width=width, layers=layers, heads=heads, mlp_hidden=hidden, patch_size=patch,
        grid=(side // patch,) * 2, dim=dim,
    )  # fmt: skip
    return ClipTeacher(name, sizes, ClipTower(sizes, sizes.grid).state_dict(), grid)


def _timm(name: str, model: str, grid: Grid) -> Teacher:
    timm = hub.library("timm", "timm", name)
    architecture = model.partition(".")[0]
    if not timm.is_model(architecture):
        raise hub.unknown("timm model", model, timm_models())
    own = timm.create_model(architecture, num_classes=0).state_dict()
    return timm_teacher(name, architecture, _without_values(name, own), grid)


def _torchvision(name: str, model: str, grid: Grid) -> Teacher:
    models = hub.library("torchvision", "torchvision", name).models
    if model not in torchvision_models():
        raise hub.unknown("torchvision model", model, torchvision_models())
    own = models.get_model(model, weights=None).state_dict()
    return torchvision_teacher(name, model, _without_values(name, own), grid)


def _without_values(name: str, state: dict[str, Tensor]) -> Weights:
    """A state dict as a weight file's content."""
    return Weights(
        Path(name), "torch", {key: functools.partial(_same, value) for key, value in state.items()}
    )


def _same(value: Tensor) -> Tensor:
    return value


FAMILIES: dict[str, Callable[[str, str, Grid], Teacher]] = {
    "openai": _clip, "open_clip": _clip, "timm": _timm, "torchvision": _torchvision,
}  # fmt: skip
