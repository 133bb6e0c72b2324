"""Networks of other libraries as weight files: their own names, strictly, both ways.

A run's file has every tensor of the network's state dict, so that the library loads it strictly, and
says in its metadata which network it is. `load_network` reads any file into a network of its kind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from eva_fast.errors import UsageError
from eva_fast.model import Backbone, BackboneSizes
from eva_fast.model.networks.sizes import built_sizes, is_backbone
from eva_fast.weights.reader import Weights, read
from eva_fast.weights.resize import adapt_channels
from eva_fast.weights.writer import write

BACKBONE = "backbone"
"""The `network` of a file that holds a `Backbone`."""
ARGUMENTS = {
    "img_size", "image_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "in_chans",
}  # fmt: skip
"""Those of a builder that a file may ask for: sizes, and nothing that reads or downloads."""
HEADS = ("head", "classifier", "fc.", "last_linear", "aux", "pre_logits", "mask_token", "lm_head")
"""How names begin that classifiers and pre-training have, and features need not."""


def write_backbone(
    model: Backbone, path: str | os.PathLike[str], values: Mapping[str, Tensor] | None = None
) -> Path:
    """Writes a network as safetensors under its library's names, its sizes in the metadata.

    values: {name in `model`: value} to write instead of the model's own, an average of them say."""
    tensors = model.official_state_dict()
    for name, value in (values or {}).items():
        official = name.removeprefix("network.")
        if official not in tensors or tensors[official].shape != value.shape:
            raise ValueError(f"{name} {tuple(value.shape)} is not a parameter of this model")
        tensors[official] = value.detach().to(tensors[official].dtype).cpu().clone()
    said = {
        **asdict(model.sizes), "arguments": dict(model.sizes.arguments), "network": BACKBONE,
        "mean": model.mean, "std": model.std,
    }  # fmt: skip
    return write(path, tensors, {"sizes": json.dumps(said)})


def holds_backbone(weights: Weights) -> bool:
    """Whether a file says that it holds a network of another library."""
    return (
        BACKBONE in weights.metadata.get("sizes", "") and _said(weights).get("network") == BACKBONE
    )


def read_backbone(weights: Weights) -> Backbone:
    """The network that a file of `write_backbone` holds, in evaluation mode. UsageError where it is not
    whole, or its library not installed."""
    said = _said(weights)
    name, side, arguments = said.get("name"), said.get("img_size"), said.get("arguments")
    known = isinstance(arguments, dict) and all(
        key in ARGUMENTS and isinstance(value, int | float) for key, value in arguments.items()
    )
    if not (isinstance(name, str) and is_backbone(name) and isinstance(side, int) and known):
        raise UsageError(f"{weights.path}: its metadata names no network of timm or torchvision")
    sizes = built_sizes(name, side, dict(arguments or ()))
    return filled(sizes, weights, weights.path)


def filled(sizes: BackboneSizes, tensors: Mapping[str, Tensor], where: object) -> Backbone:
    """The network of these sizes with these weights, under its library's names."""
    model = Backbone(sizes)
    try:
        model.load_official({f"{name}": tensors[name] for name in tensors})
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    return model.eval()


def initialise_backbone(model: Backbone, path: str | os.PathLike[str]) -> None:
    """Starts a network from a weight file of its kind, under its library's names or others that the
    library itself converts; that fits positions and patches to other sizes, too. A first convolution of
    three channels becomes one of as many as the images have. What no feature depends
    on need not be there. UsageError where the rest does not fit."""
    weights = read(path)
    state: dict[str, Tensor] = dict(weights)
    network, name, unused = model.network, model.sizes.name, model.unused

    def is_head(key: str) -> bool:
        return key in unused or (key.startswith(HEADS) and key not in own)

    own = network.state_dict()
    prefix = common_prefix(state, [key for key in own if not is_head(key)])
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    for key in model.library.first_weights(network):
        if key in state and state[key].ndim == 4:
            state[key] = adapt_channels(state[key], model.sizes.channels)
    try:
        load_network(network, state, name, is_head, weights.path)
    except UsageError as refused:
        converted = model.library.converted(network, state)
        if converted is None:
            raise
        try:
            load_network(network, converted, name, is_head, weights.path)
        except UsageError as error:
            raise (error if own.keys() & converted.keys() else refused) from None
    model.remember()


def load_network(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    architecture: str,
    is_head: Callable[[str], bool],
    where: Path,
) -> None:
    """Load weights into a network strictly, but for its head, which no feature needs.

    Names may stand behind one prefix, as `visual.trunk.` in open_clip's files: then what lies beside
    it is left out.

    Raises UsageError that names what is missing, unknown or of another shape.
    """
    own = model.state_dict()
    prefix = common_prefix(weights, [name for name in own if not is_head(name)])
    body = {}
    for name, value in weights.items():
        key = name.removeprefix(prefix)
        if name.startswith(prefix) and (
            not is_head(key) or (key in own and own[key].shape == value.shape)
        ):
            body[key] = value
    faults = [
        f"{key} is {list(value.shape)}, not {list(own[key].shape)}"
        for key, value in body.items()
        if key in own and own[key].shape != value.shape
    ]
    if not faults:
        result = model.load_state_dict(body, strict=False)
        missing = [
            key
            for key in result.missing_keys
            if not is_head(key) and not key.endswith("num_batches_tracked")
        ]
        faults = [f"lacks {key}" for key in missing]
        faults += [f"unknown {key}" for key in result.unexpected_keys]
    if faults:
        raise UsageError(
            f"{where} does not fit {architecture}: {'; '.join(faults[:4])}"
            + (f" and {len(faults) - 4} more" if len(faults) > 4 else "")
        )


def common_prefix(weights: Mapping[str, Tensor], own: list[str]) -> str:
    """The one prefix behind which `weights` hold every name of `own`; "" where there is none."""
    longest = max(own, key=len)
    prefixes = [n[: -len(longest)] for n in weights if n.endswith("." + longest)]
    whole = [p for p in prefixes if all(p + name in weights for name in own)]
    return whole[0] if len(whole) == 1 and longest not in weights else ""


def _said(weights: Weights) -> dict[str, Any]:
    try:
        found = json.loads(weights.metadata["sizes"])
    except (ValueError, KeyError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
