"""What configuration files and metadata say about a network that its shapes do not."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eva_fast.documents import read_object
from eva_fast.errors import UsageError
from eva_fast.layers.inputs import STATISTICS
from eva_fast.options import shown
from eva_fast.weights.reader import Weights


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no file, ValueError where there is no JSON in it."""
    if not path.is_file():
        return {}
    return read_object(path)


@contextlib.contextmanager
def said_beside(path: Path) -> Iterator[None]:
    """Around what is made of a configuration beside the weights `path`: where its values are of other
    kinds than such configurations have, one UsageError."""
    try:
        yield
    except UsageError:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise UsageError(
            f"the configuration beside {path} says what no network of its kind is like ({error})"
        ) from None


def clip_hints(weights: Weights) -> dict[str, Any]:
    """Hints for the sizes of a CLIP tower from the file's metadata and the configuration beside it.

    Later sources win: open_clip_config.json for files that open_clip names, else config.json (of
    Hugging Face or timm), then the metadata inside the weight file.
    """
    with said_beside(weights.path):
        folder = weights.path.parent
        open_clip = read_json(folder / "open_clip_config.json")
        config = read_json(folder / "config.json")
        use_open_clip = open_clip and (weights.path.name.startswith("open_clip") or not config)
        hints = open_clip_hints(open_clip) if use_open_clip else _config_hints(config, folder)
        hints.update(_metadata_hints(weights.metadata))
        return _sound(hints)


def vit_hints(weights: Weights) -> dict[str, Any]:
    """Hints for the sizes of any vision transformer: any of heads, activation, image_size, eps, mean,
    std. From Hugging Face's config.json and preprocessor_config.json beside the file or open_clip's
    normalisation, then the file's metadata; a student of one's own says its heads and statistics
    there."""
    with said_beside(weights.path):
        folder = weights.path.parent
        config, image = (
            read_json(folder / "config.json"),
            read_json(folder / "preprocessor_config.json"),
        )
        prepared = read_json(folder / "open_clip_config.json").get("preprocess_cfg") or {}
        vision = config.get("vision_config") or config
        hints = {
            "heads": vision.get("num_attention_heads"),
            "activation": vision.get("hidden_act"),
            "image_size": vision.get("image_size"),
            "eps": vision.get("layer_norm_eps"),
            "mean": _triple(image.get("image_mean", prepared.get("mean"))),
            "std": _triple(image.get("image_std", prepared.get("std"))),
        }
        hints.update(_metadata_hints(weights.metadata))
        if "sizes" in weights.metadata:
            try:
                said = json.loads(weights.metadata["sizes"])
                hints["heads"] = int(said["num_heads"])
                hints["mean"], hints["std"] = STATISTICS[said.get("statistics", "clip")]
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(f"{weights.path}: `sizes` in its metadata: {error}") from None
            hints["activation"] = "gelu"
        return _sound(hints)


def _sound(hints: Mapping[str, Any]) -> dict[str, Any]:
    """The hints that say something. ValueError for one that no network can have."""
    said = {key: value for key, value in hints.items() if value is not None}
    for key, value in said.items():
        if not _CAN_BE[key](value):
            raise ValueError(f"{key} {shown(value)}")
    return said


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 20


def _is_size(value: Any) -> bool:
    two = isinstance(value, list | tuple) and len(value) == 2
    return all(map(_is_count, value)) if two else _is_count(value)


_CAN_BE: dict[str, Callable[[Any], bool]] = {
    "heads": _is_count,
    "image_size": _is_size,
    "activation": lambda value: isinstance(value, str),
    "eps": lambda value: isinstance(value, float | int) and 0 <= value < 1,
    "mean": lambda value: all(map(math.isfinite, value)),
    "std": lambda value: all(0 < v < math.inf for v in value),
}


def image_statistics(folder: Path) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """(mean, std) by which Hugging Face's preprocessor_config.json normalises images; None unsaid."""
    with said_beside(folder):
        image = read_json(folder / "preprocessor_config.json")
        return _triple(image.get("image_mean")), _triple(image.get("image_std"))


def heads_beside(path: Path) -> int | None:
    """Attention heads according to the config.json beside a weight file (Hugging Face's, timm's)."""
    with said_beside(path):
        return _sound(_config_hints(read_json(path.parent / "config.json"), path.parent)).get(
            "heads"
        )


def open_clip_hints(config: Mapping[str, Any]) -> dict[str, Any]:
    """Hints of an open_clip configuration: {"model_cfg": ..., "preprocess_cfg": ...}."""
    model = config.get("model_cfg", config)
    vision = model.get("vision_cfg") or {}
    preprocess = config.get("preprocess_cfg") or {}
    for option in ("timm_model_name", "attentional_pool", "act_kwargs", "scaled_cosine_attn"):
        if vision.get(option):
            raise UsageError(
                f"an open_clip tower with {option}={vision[option]!r} is no plain CLIP vision "
                "transformer"
            )
    if isinstance(vision.get("layers"), (list, tuple)):
        raise UsageError("this is a CLIP ResNet; only CLIP's vision transformers are teachers")
    width = vision.get("width")
    return {
        "heads": width // vision.get("head_width", 64) if width else None,
        "activation": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "image_size": vision.get("image_size"),
        "eps": (vision.get("norm_kwargs") or {}).get("eps"),
        "mean": _triple(preprocess.get("mean")),
        "std": _triple(preprocess.get("std")),
    }


def timm_hints(architecture: str, pretrained: Mapping[str, Any]) -> dict[str, Any]:
    """Hints of a timm model name and its pretrained configuration.

    OpenAI's weights were trained with QuickGELU; timm also offers them under a name with the exact
    GELU, which gives other features than CLIP's.
    """
    tag = str(pretrained.get("tag") or "")
    quick = "quickgelu" in architecture or architecture.endswith(".openai") or tag == "openai"
    size = pretrained.get("input_size")
    return {
        "activation": "quick_gelu" if quick else "gelu",
        "image_size": tuple(size[1:]) if size else None,
        "mean": _triple(pretrained.get("mean")),
        "std": _triple(pretrained.get("std")),
    }


def _config_hints(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    if "architecture" in config:
        arguments = config.get("model_args") or {}
        hints = timm_hints(str(config["architecture"]), config.get("pretrained_cfg") or {})
        hints["heads"] = arguments.get("num_heads")
        hints["image_size"] = arguments.get("img_size", hints["image_size"])
        return hints
    vision = config.get("vision_config") or config
    if not {"num_attention_heads", "hidden_act", "hidden_size", "model_type"} & vision.keys():
        return {}  # no file, or one about something else
    image = read_json(folder / "preprocessor_config.json")
    return {
        "heads": vision.get("num_attention_heads"),
        "activation": vision.get("hidden_act", "quick_gelu"),
        "image_size": vision.get("image_size"),
        "eps": vision.get("layer_norm_eps"),
        "mean": _triple(image.get("image_mean")),
        "std": _triple(image.get("image_std")),
    }


def _metadata_hints(metadata: Mapping[str, str]) -> dict[str, Any]:
    heads = metadata.get("heads", metadata.get("num_heads"))
    size = metadata.get("img_size", metadata.get("image_size"))
    activation = metadata.get("activation", metadata.get("hidden_act"))
    if heads is not None and not heads.isdigit():
        raise UsageError(f"metadata says heads={heads!r}, which is no whole number")
    return {
        key: value
        for key, value in (
            ("heads", int(heads) if heads else None),
            ("image_size", int(size) if size and size.isdigit() else None),
            ("activation", activation),
        )
        if value is not None
    }


def _triple(values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    if len(values) != 3:
        raise UsageError(f"a normalisation needs three numbers, not {values}")
    return tuple(float(v) for v in values)
