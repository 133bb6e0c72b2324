"""A page's runs and networks as they can run here in seconds: its own options, with small sizes."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from eva_fast.config import Config
from eva_fast.presets import with_defaults

ABSOLUTE = re.compile(r"(?<![\w./~-])/(?=(data|weights|checkpoints|path/to)\b)")
HUBS = re.compile(r"(openai|open_clip|hf|timm|torchvision)/[^:]*$")
A_CLIP = "ViT-L-14.pt"  # of `materials`
FEW_STEPS, FEW_IMAGES = 8, 8
PLANNED_IMAGES = 512  # a multiple of every page's number of GPUs
WHOLE = Config.from_options
SIZES = dict(embed_dim=32, num_heads=2)
OWN_SIZES = dict(depth=2, mlp_hidden=64)
DECODER = dict(decoder_dim=32, decoder_depth=1, decoder_heads=2)


def here(text: str) -> str:
    """A page's absolute paths as those of the folder that it runs in."""
    return ABSOLUTE.sub("", text)


def small(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a run, small: few steps of few images, a narrow student, on this CPU. A teacher
    that a hub would be asked for is the CLIP of `materials`. Small options stay as they are."""
    all_of_it = {"model": "eva_ti_patch16_96", **with_defaults(options)}
    model, objective = str(all_of_it["model"]), all_of_it.get("objective", "eva")
    made = {
        **options,
        "steps": min(all_of_it.get("steps") or 2, FEW_STEPS),
        "batch_size": min(all_of_it.get("batch_size") or 4, FEW_IMAGES),
        "accumulate": min(all_of_it.get("accumulate") or 1, 2),
        "kernels": options.get("kernels", "torch"),
        "device": "cpu", "workers": 0, "progress": False, "decode": "cpu", "graph": "auto",
    }  # fmt: skip
    if all_of_it.get("precision") == "fp16":  # a GPU's
        made["precision"] = "fp32"
    if isinstance(all_of_it.get("teacher"), str) and HUBS.match(all_of_it["teacher"]):
        made["teacher"] = A_CLIP
    if _is_a_vit(model):
        made |= SIZES if model.startswith("timm/") else {**SIZES, **OWN_SIZES}
    elif "/" in model:
        made.setdefault("img_size", 64)
    if objective in ("mae", "pixels", "vqkd"):
        made |= DECODER
    if objective == "vqkd":
        made["codebook_size"] = 64
    return made


def small_plan(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a plan, whose hardware is not this CPU, and whose batch many GPUs can share."""
    device = options.get("device", "auto")
    return {**small(options), "batch_size": PLANNED_IMAGES, "device": device}


@contextlib.contextmanager
def planning() -> Iterator[None]:
    """Within `all_small`: meanwhile options are of a plan."""
    with mock.patch.object(Config, "from_options", lambda options: WHOLE(small_plan(options))):
        yield


def _is_a_vit(name: str) -> bool:
    return bool(re.match(r"(timm/)?(naflex)?(vit|deit|eva|beit|samvit)", name))


def narrow(create: Callable[..., Any]) -> Callable[..., Any]:
    """timm's `create_model`, whose ViTs are narrow unless the call says how wide: their names, depths
    and sizes of images stay."""

    def create_narrow(name: str, *args: Any, **options: Any) -> Any:
        less: dict[str, Any] = dict(SIZES) if _is_a_vit(name) else {}
        if name.startswith("samvit"):
            less = dict(embed_dim=32, num_heads=1, depth=2, img_size=64)
        return create(name, *args, **{**less, **options})

    return create_narrow


@contextlib.contextmanager
def all_small() -> Iterator[None]:
    """Meanwhile every run of this process is small, and so are timm's ViTs."""
    import timm

    with (
        mock.patch.object(Config, "from_options", lambda options: WHOLE(small(options))),
        mock.patch.object(timm, "create_model", narrow(timm.create_model)),
    ):
        yield
