"""A file for the code that published the network: of EVA-01, BEiT v2, Feature Distillation."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eva_fast.errors import UsageError
from eva_fast.model import BeitViT, EvaViT, SwinV2
from eva_fast.weights.formats.exported import TORCH_SUFFIXES, Exported, text
from eva_fast.weights.student import write_student
from eva_fast.weights.writer import write_torch

_GIVES = {
    EvaViT: (
        "model.load_state_dict(state)  # the official pre-training model of the same sizes\n"
        "# model.forward_features(images, mask): all tokens after the last norm, [B,T,D]\n"
    ),
    SwinV2: (
        "model.load_state_dict(state, strict=False)  # SwinTransformerV2 of the same sizes; what it\n"
        "# misses is computed: relative_coords_table, relative_position_index, attn_mask\n"
    ),
    BeitViT: (
        "model.load_state_dict(state, strict=False)  # the ViT of the same sizes; what it misses is\n"
        "# for pre-training, or computed: relative_position_index\n"
    ),
}


def write_official(model: EvaViT | SwinV2 | BeitViT, path: Path, dtype: torch.dtype) -> Exported:
    """A file for the code that published the network: of EVA-01, BEiT v2, Feature Distillation."""
    if path.suffix in TORCH_SUFFIXES:
        write_torch(path, {"model": in_dtype(model, dtype)})
        load = f'import torch\n\nstate = torch.load({text(path)}, weights_only=True)["model"]\n'
    else:
        write_student(model, path, in_dtype(model, dtype), dtype)
        load = f"from safetensors.torch import load_file\n\nstate = load_file({text(path)})\n"
    (gives,) = (text for kind, text in _GIVES.items() if isinstance(model, kind))
    if isinstance(model, EvaViT) and model.variant.relative_bias != "none":
        gives = gives.replace(
            "load_state_dict(state)", "load_state_dict(state, strict=False)"
        ).replace("of the same sizes", "of the same sizes; what it misses is computed")
    return Exported(path, load + gives)


def in_dtype(model: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """A student's tensors; UsageError where a number is too large for the dtype."""
    state = {name: value.to(dtype) for name, value in model.official_state_dict().items()}
    for name, value in state.items():
        if dtype != torch.float32 and not bool(value.isfinite().all()):
            kind = str(dtype).removeprefix("torch.")
            raise UsageError(f"{name} has numbers that {kind} cannot hold: write another dtype")
    return state
