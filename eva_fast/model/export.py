"""Student weights as files that others read: safetensors in the official EVA-01 naming.

The metadata holds the sizes as JSON under `sizes` (img_size, patch_size, embed_dim, depth, num_heads,
mlp_hidden, predict_dim), so a file alone is enough to build its model. Files written by others
have none: `infer_sizes` reads the sizes off the tensor shapes.
"""

import json
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from eva_fast.errors import MissingFileError, UsageError
from eva_fast.model.sizes import ModelSizes
from eva_fast.model.vit import EvaViT

SIZE_NAMES = tuple(ModelSizes.__dataclass_fields__)
# Attention heads leave no trace in the shapes. EVA-01's giant has heads of 88, all others of 64.
HEAD_WIDTH, GIANT_HEAD_WIDTH, GIANT_WIDTH = 64, 88, 1408
# Wrappers that official and timm checkpoints put around the state dict.
WRAPPERS = ("model_ema", "model", "module", "state_dict")


def save_weights(
    model: EvaViT, path: str | Path, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Writes a student as float32 safetensors in official naming; timm's `eva_*` loads the file.

    Args:
        model: an `EvaViT`; its sizes go into the metadata.
        path: the file. It appears whole or not at all.
        weights: values to write instead of the model's own (an average of them, say); names that
            are missing here are taken from the model.
    """
    tensors = model.official_state_dict()
    for name, value in (weights or {}).items():
        if name not in tensors or tensors[name].shape != value.shape:
            raise UsageError(f"{name} {tuple(value.shape)} is not a parameter of this model")
        tensors[name] = value.detach().float().cpu().clone()
    # one entry: safetensors writes several in random order, and equal weights should be equal files
    metadata = {"sizes": json.dumps(asdict(model.sizes))}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, metadata)
        # safetensors writes files only their owner can read; pass on what the umask allows.
        partial.chmod(0o666 & ~_umask())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(state dict in official naming, metadata) of a weight file.

    Reads safetensors, and `.pt` / `.pth` / `.bin` without running pickled code. Names of timm's
    fine-tuning models are mapped back (`fc_norm` -> `norm`); their classifier is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a readable weight file, or not one of an EVA-01 ViT.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"there is no weight file {path}")
    metadata: dict[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if "sizes" in metadata:
                    metadata = {k: str(v) for k, v in json.loads(metadata["sizes"]).items()}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own message advises to run whatever is in the file
        raise UsageError(
            f"{path} is not a readable weight file: neither safetensors nor a state dict of tensors "
            "saved by torch.save. Pickled Python objects are never loaded: that runs code"
        ) from None
    except (SafetensorError, OSError, EOFError, RuntimeError) as error:
        raise UsageError(f"{path} is not a readable weight file: {error}") from None
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not isinstance(state.get("pos_embed"), Tensor):
        raise UsageError(
            f"{path} does not hold an EVA-01 ViT: official or timm naming with pos_embed, "
            "patch_embed.proj.weight, blocks.0.attn.qkv.weight, ... is expected"
        )
    return {_official(k): v for k, v in state.items() if not k.startswith("head.")}, metadata


def infer_sizes(
    state: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None
) -> ModelSizes:
    """Sizes of the model that `state` belongs to. The shapes decide; heads, which the shapes do not
    show, come from `metadata["num_heads"]` or from the usual head width (64; 88 at width 1408).
    A file without `lm_head` (fine-tuned) gets `predict_dim` 1. ValueError if names are missing."""
    try:
        dim, _, patch, _ = state["patch_embed.proj.weight"].shape
        patches = state["pos_embed"].shape[1] - 1
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise UsageError(f"these are not the weights of an EVA-01 ViT: {error}") from None
    side = round(patches**0.5)
    if side * side != patches:
        raise UsageError(f"pos_embed has {patches} patches, which is not a square grid")
    numbers = [int(m[1]) for k in state if (m := re.match(r"blocks\.(\d+)\.", k))]
    head = state.get("lm_head.weight")
    known = (metadata or {}).get("num_heads")
    width = GIANT_HEAD_WIDTH if dim == GIANT_WIDTH else HEAD_WIDTH
    if known is None and dim % width:
        raise UsageError(
            f"the number of attention heads cannot be told from the shapes (width {dim} is not a "
            f"multiple of {width}); put the run's config.yaml beside the file, or num_heads into "
            "its metadata"
        )
    return ModelSizes(
        img_size=side * patch,
        patch_size=patch,
        embed_dim=dim,
        depth=max(numbers) + 1,
        num_heads=int(str(known)) if known is not None else dim // width,
        mlp_hidden=hidden,
        predict_dim=1 if head is None else head.shape[0],
    )


def _official(name: str) -> str:
    return name.replace("fc_norm.", "norm.", 1) if name.startswith("fc_norm.") else name


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
