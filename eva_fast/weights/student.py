"""Students as weight files: safetensors in the official EVA-01 naming, which others read.

The metadata holds the sizes as JSON under `sizes` (img_size, patch_size, embed_dim, depth, num_heads,
mlp_hidden, predict_dim; of MAE's encoder also `network` and `statistics`, which a student says too whose
images are not normalised by CLIP's, and the initial `layer_scale` of one that has it), so a file alone
is enough to build its model. Files written by others have none: `infer_sizes` and `infer_variant` read
off the tensors what they show.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from eva_fast.errors import UsageError
from eva_fast.layers.inputs import STATISTICS, Statistics
from eva_fast.layers.rel_pos import SPECIAL_ROWS
from eva_fast.model import BeitViT, EvaViT, MaeEncoder, ModelSizes, SwinSizes, SwinV2
from eva_fast.model.beit import LAYER_SCALE
from eva_fast.model.variant import RelativeBias, Variant
from eva_fast.weights import naming
from eva_fast.weights.beit import TABLE, beit_state, table_side
from eva_fast.weights.blocks import count_blocks
from eva_fast.weights.hints import heads_beside
from eva_fast.weights.naming.official import DECOUPLED
from eva_fast.weights.reader import Weights, read
from eva_fast.weights.resize import adapt_channels, resize_patches, resize_positions
from eva_fast.weights.resize_bias import resize_relative_bias
from eva_fast.weights.swin import SWIN
from eva_fast.weights.writer import write

logger = logging.getLogger(__name__)

SIZE_NAMES = tuple(name for name in ModelSizes.__dataclass_fields__ if name != "channels")
"""What a file's metadata always says. Channels show in the patch convolution; other than three are said,
too."""
PRETRAINING_ONLY = ("mask_token", "lm_head.weight", "lm_head.bias")
"""What features do not need: weights of fine-tuned models lack it."""
MAE = "mae"
"""The `network` of a file that holds `MaeEncoder`."""
# Attention heads leave no trace in the shapes. EVA-01's giant has heads of 88, all others of 64.
HEAD_WIDTH, GIANT_HEAD_WIDTH, GIANT_WIDTH = 64, 88, 1408


def write_student(
    model: EvaViT | MaeEncoder | SwinV2 | BeitViT,
    path: str | os.PathLike[str],
    values: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a student as safetensors in official naming; timm's `eva_*` loads the file, its
    `vit_*` that of MAE's encoder. Swin's are Feature Distillation's names.

    Args:
        model: the student; its sizes go into the metadata.
        path: the file. It appears whole or not at all.
        values: values to write instead of the model's own (an average of them, say); names that
            are missing here are taken from the model.
        dtype: of the file's numbers.
    """
    tensors = model.official_state_dict()
    for name, value in (values or {}).items():
        if name not in tensors or tensors[name].shape != value.shape:
            raise ValueError(f"{name} {tuple(value.shape)} is not a parameter of this model")
        tensors[name] = value.detach().float().cpu().clone()
    tensors = {name: value.to(dtype) for name, value in tensors.items()}
    return write(path, tensors, {"sizes": json.dumps(_description(model))})


def _description(model: EvaViT | MaeEncoder | SwinV2 | BeitViT) -> dict[str, object]:
    """What a file says of its model."""
    sizes = asdict(model.sizes)
    if sizes.get("channels") == 3:
        del sizes["channels"]
    if isinstance(model, SwinV2):
        return {**sizes, "network": SWIN}
    if isinstance(model, MaeEncoder):
        return {**sizes, "predict_dim": 1, "network": MAE, "statistics": model.statistics}
    if isinstance(model, BeitViT):
        return {**sizes, "network": "beit"}
    normalize, gamma = model.variant.normalize, model.variant.layer_scale
    said = {} if normalize == "clip" else {"statistics": normalize}
    return {**sizes, **said, **({} if gamma is None else {"layer_scale": gamma})}


def read_student(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(state dict in official naming, metadata) of an EVA-01 ViT in any file or folder `read` takes.

    Names of the official code, timm (`eva_*`, and `vit_*` with a class token), open_clip's timm towers
    and Hugging Face's `ViTModel` are understood. A classifier is left out.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: it is not a readable weight file, or not one of an EVA-01 ViT.
    """
    weights = read(path)
    found = naming.find(weights, naming.EVA)
    if found is None:
        raise UsageError(
            f"{weights.path} does not hold an EVA-01 ViT: official, timm, open_clip or Hugging Face "
            "naming is expected, with pos_embed, patch_embed.proj.weight, blocks.0.attn.qkv.weight, "
            f"... (its names: {', '.join(list(weights)[:4])}, ...)"
        )
    names, prefix = found
    return names.read(weights, prefix), _metadata(weights)


def _metadata(weights: Weights) -> dict[str, str]:
    """The file's metadata, its `sizes` spread out; without them, what a config.json says of heads."""
    if "sizes" not in weights.metadata:
        heads = heads_beside(weights.path)
        return ({} if heads is None else {"num_heads": str(heads)}) | weights.metadata
    try:
        return {k: str(v) for k, v in json.loads(weights.metadata["sizes"]).items()}
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{weights.path}: `sizes` in its metadata is no JSON: {error}") from None


def infer_sizes(
    state: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None
) -> ModelSizes:
    """Sizes of the model that `state` belongs to. The shapes decide; heads, which the shapes do not
    show, come from `metadata["num_heads"]` or from the usual head width (64; 88 at width 1408).
    A file without `lm_head` (fine-tuned) gets `predict_dim` 1. UsageError if names are missing."""
    try:
        dim, channels, patch, _ = state["patch_embed.proj.weight"].shape
        patches = state["pos_embed"].shape[1] - 1
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise UsageError(f"these are not the weights of an EVA-01 ViT: {error}") from None
    side = round(patches**0.5)
    if side * side != patches:
        raise UsageError(f"pos_embed has {patches} patches, which is not a square grid")
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
        depth=count_blocks(state, r"blocks\.(\d+)\."),
        num_heads=dim // width if known is None else _whole(known),
        mlp_hidden=hidden,
        predict_dim=1 if head is None else head.shape[0],
        channels=channels,
    )


def infer_variant(state: Mapping[str, Tensor], said: Mapping[str, object]) -> Variant:
    """What the student that `state` belongs to has beside EVA-01's network; what the tensors do not show
    is said by its metadata or, of a checkpoint, the run's options. UsageError for what is none."""
    statistics = str(said.get("statistics") or said.get("normalize") or "clip")
    if statistics not in STATISTICS:
        raise UsageError(
            f"its images are said to be normalised by {statistics!r:.50}, which is none of "
            f"{', '.join(STATISTICS)}"
        )
    gamma = None
    if "blocks.0.gamma_1" in state:
        try:
            gamma = float(str(said.get("layer_scale") or LAYER_SCALE))
        except ValueError as error:
            raise UsageError(f"its layer_scale is no number: {error}") from None
    bias: RelativeBias = "none"
    if TABLE in state:
        bias = "shared"
    elif DECOUPLED[0] in state:
        bias = "decoupled"
    return Variant(normalize=cast(Statistics, statistics), layer_scale=gamma, relative_bias=bias)


def _whole(heads: object) -> int:
    if not re.fullmatch(r"\d{1,9}", str(heads)):
        raise UsageError(f"{heads!r:.50} is no number of attention heads")
    return int(str(heads))


def initialise(model: EvaViT, path: str | os.PathLike[str]) -> None:
    """Starts a student from a weight file: what `init_from` does.

    Positions and the patch convolution are resized where the file is of another image or patch size, and
    a convolution of three channels is made one of as many as the images have (`adapt_channels`).
    What pre-training alone needs and the file lacks (mask token, prediction head, or one of another
    teacher's width), LayerScale and relative positions too, keeps the model's own start, and that is
    logged. UsageError where the rest does not fit.
    """
    state, _ = read_student(path)
    own = model.state_dict()
    _check_extras(state, own, path)
    fresh = [n for n in PRETRAINING_ONLY if n not in state or state[n].shape != own[n].shape]
    fresh += [n for n in own if _is_extra(n) and n not in state]
    state = fit(state, model.sizes) | {name: own[name] for name in fresh}
    try:
        model.load_official(state)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    if fresh:
        logger.warning("%s has no %s for this student: they start anew", path, ", ".join(fresh))


def _is_extra(name: str) -> bool:
    """Whether it is of LayerScale or of relative positions."""
    return name.endswith(("gamma_1", "gamma_2")) or name.startswith("rel_pos_bias.")


def _check_extras(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: object) -> None:
    """UsageError where the file has what the student's options leave out."""
    surplus = [name for name in state if _is_extra(name) and name not in own]
    if surplus:
        options = sorted({_OPTIONS[name.startswith("rel_pos_bias.")] for name in surplus})
        raise UsageError(
            f"{path} has {surplus[0]}, and the student of these options has none: give "
            f"{' and '.join(options)} too"
        )


_OPTIONS = {False: "layer_scale", True: "relative_bias"}


def initialise_encoder(encoder: MaeEncoder, path: str | os.PathLike[str]) -> None:
    """As `initialise`, of MAE's encoder: the whole of it, its positions too. Files without a bias of the
    keys, which changes nothing, give it zeros."""
    state, _ = read_student(path)
    known = {n: t for n, t in fit(state, encoder.sizes).items() if n not in PRETRAINING_ONLY}
    try:
        encoder.load_official(naming.timm.VIT.write(known))
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def initialise_beit(model: BeitViT, path: str | os.PathLike[str]) -> None:
    """As `initialise`, of BEiT's ViT: the table of relative positions is resized too."""
    weights: Weights = read(path)
    state = beit_state(weights)
    if state is None:
        raise UsageError(
            f"{weights.path} holds no ViT with a shared relative position bias ({TABLE})"
        )
    own = model.state_dict()
    pretraining = ("mask_token", "lm_head.weight", "lm_head.bias")
    spare: dict[str, Tensor] = {name: own[name] for name in pretraining if name in own}
    try:
        model.load_official({**spare, **fit(state, model.sizes)})
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def fit(
    state: Mapping[str, Tensor], sizes: ModelSizes | SwinSizes, resize: str = "timm"
) -> dict[str, Tensor]:
    """`state` with positions, table of relative positions and patch convolution of `sizes`, resized
    where they are of others.
    resize: one of `RESIZES`."""
    out = dict(state)
    patch, table = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    if patch is not None and patch.ndim == 4:
        patch = patch if isinstance(sizes, SwinSizes) else adapt_channels(patch, sizes.channels)
        out["patch_embed.proj.weight"] = resize_patches(patch, sizes.patch_size, resize)
    if table is not None and table.ndim == 3:
        side = round((table.shape[1] - 1) ** 0.5)
        if side * side == table.shape[1] - 1:
            out["pos_embed"] = resize_positions(table, (side, side), sizes.grid, resize)
    if TABLE in state:
        side = table_side(state[TABLE])
        out[TABLE] = resize_relative_bias(state[TABLE], (side, side), sizes.grid, resize)
    for name in DECOUPLED:
        if name in state and len(state[name]) != 2 * sizes.grid[0] - 1 + SPECIAL_ROWS:
            side = (len(state[name]) - SPECIAL_ROWS + 1) // 2
            raise UsageError(
                f"{name} is of {side} patches a side and is not resized to {sizes.grid[0]}: choose an "
                "img_size and patch_size with as many"
            )
    resized = [name for name in out if out[name] is not state[name]]
    if resized:
        logger.info("resized to %s: %s", sizes, ", ".join(resized))
    return out
