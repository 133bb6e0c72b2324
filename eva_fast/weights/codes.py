"""Tokenizers and the students of their codes as weight files: safetensors in BEiT v2's naming.

Our own files say their sizes in the metadata; of others the shapes do, but for a tokenizer's heads,
which are of 64 as published.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eva_fast.errors import UsageError
from eva_fast.model import ModelSizes
from eva_fast.model.token_vit import TokenViT
from eva_fast.model.vqkd import VqKd, VqKdSizes
from eva_fast.weights.blocks import count_blocks
from eva_fast.weights.reader import Weights
from eva_fast.weights.writer import write

CODEBOOK = "quantize.embedding.weight"
TABLE = "rel_pos_bias.relative_position_bias_table"
HEAD_WIDTH = 64
BRANCH = "cls_pt_layers"
PRETRAINING = ("mask_token", "lm_head.", f"{BRANCH}.")
"""What a student of tokens has beside its encoder."""
CodeModel = VqKd | TokenViT


def holds_codes(names: Iterable[str]) -> bool:
    """Whether these are names of a tokenizer, or of a student that predicts codes."""
    known = set(names)
    codes = {
        TABLE,
        "lm_head.weight",
    } <= known and "pos_embed" not in known  # which EVA's student has
    return CODEBOOK in known or codes


def code_model(
    tensors: Mapping[str, Tensor], where: object, heads: int | None = None, decodes: bool = True
) -> CodeModel:
    """The network that `holds_codes` recognised, with its weights, in evaluation mode.

    Args:
        tensors: by name; of a file, its `Weights`, whose metadata is asked for the sizes first.
        where: what messages call them.
        heads: of a tokenizer, where they are known otherwise.
        decodes: whether a tokenizer gets its decoder.

    UsageError where names are missing or of another shape.
    """
    try:
        with torch.device("meta"):  # it takes memory when it is known to fit
            model = _network(tensors, heads, decodes)
    except (KeyError, IndexError) as error:
        raise UsageError(f"{where} is not whole: it lacks {error}") from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"{where}: {error}") from None
    own = model.state_dict()
    faults = [
        f"{name} {tuple(tensors[name].shape)}" if name in tensors else name
        for name, value in own.items()
        if name not in tensors or tensors[name].numel() != value.numel()
    ]
    if faults:
        raise UsageError(
            f"{where} is not whole; missing or of another shape: {', '.join(faults[:8])}"
            f"{', ...' if len(faults) > 8 else ''}"
        )
    model = _network(tensors, heads, decodes)
    model.load_state_dict({name: tensors[name].view(value.shape) for name, value in own.items()})
    return model.eval()


def _network(tensors: Mapping[str, Tensor], heads: int | None, decodes: bool) -> CodeModel:
    if CODEBOOK in tensors:
        return VqKd(_tokenizer_sizes(tensors, heads), decodes=decodes)
    return _token_student(tensors)


def write_code_model(
    model: CodeModel, path: str | os.PathLike[str], values: Mapping[str, Tensor] | None = None
) -> Path:
    """Writes a tokenizer or a student of tokens in official naming, in float32, with its sizes as
    metadata. values: {name: tensor} to write instead of the model's own."""
    return write(path, float_tensors(model, values), {"sizes": json.dumps(asdict(model.sizes))})


def float_tensors(
    model: CodeModel, values: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """All values of a model, or those in `values` instead of them: float32, on the CPU."""
    tensors = {**model.state_dict(), **(values or {})}
    return {name: tensor.detach().float().cpu() for name, tensor in tensors.items()}


def timm_tensors(model: TokenViT) -> dict[str, Tensor]:
    """What timm's `Beit` holds of a student of tokens: its encoder, under the same names."""
    state = model.official_state_dict()
    return {n: t for n, t in state.items() if not n.startswith(PRETRAINING)}


def timm_beit_arguments(sizes: ModelSizes) -> dict[str, Any]:
    """What `timm.models.beit.Beit` is to be given for a student's sizes; its features are all tokens
    after the last norm."""
    return dict(
        img_size=sizes.img_size, patch_size=sizes.patch_size, embed_dim=sizes.embed_dim,
        depth=sizes.depth, num_heads=sizes.num_heads, mlp_ratio=sizes.mlp_hidden / sizes.embed_dim,
        init_values=0.1, use_abs_pos_emb=False, use_shared_rel_pos_bias=True, global_pool="token",
        num_classes=0,
    )  # fmt: skip


def _tokenizer_sizes(tensors: Mapping[str, Tensor], heads: int | None) -> VqKdSizes:
    said = tensors.metadata.get("sizes") if isinstance(tensors, Weights) else None
    if said is not None:
        try:
            told = json.loads(said)
            sizes = VqKdSizes(**{**told, "student": ModelSizes(**told["student"])})
        except UsageError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(f"`sizes` in its metadata: {error}") from None
        if max(sizes.student.depth, sizes.decoder_depth) > len(tensors):
            raise UsageError(f"its metadata speaks of more blocks than its {len(tensors)} tensors")
        return sizes
    codes, code_dim = tensors[CODEBOOK].shape
    last = tensors.get("decode_task_layer.2.bias")
    side = round((tensors["encoder.pos_embed"].shape[1] - 1) ** 0.5)
    return VqKdSizes(
        student=_sizes(tensors, "encoder.", side, heads, 1 if last is None else len(last)),
        codes=codes, code_dim=code_dim, decoder_depth=_depth(tensors, "decoder.blocks"),
    )  # fmt: skip


def _token_student(tensors: Mapping[str, Tensor]) -> TokenViT:
    rows, heads = tensors[TABLE].shape  # (2 side - 1)^2 + 3
    side = (round((rows - 3) ** 0.5) + 1) // 2
    sizes = _sizes(tensors, "", side, heads, len(tensors["lm_head.weight"]))
    return TokenViT(sizes, branch_depth=_depth(tensors, BRANCH))


def _sizes(
    tensors: Mapping[str, Tensor], prefix: str, side: int, heads: int | None, predict_dim: int
) -> ModelSizes:
    dim, _, patch, _ = tensors[f"{prefix}patch_embed.proj.weight"].shape
    return ModelSizes(
        img_size=side * patch, patch_size=patch, embed_dim=dim,
        depth=_depth(tensors, f"{prefix}blocks"), num_heads=heads or max(1, dim // HEAD_WIDTH),
        mlp_hidden=len(tensors[f"{prefix}blocks.0.mlp.fc1.weight"]), predict_dim=predict_dim,
    )  # fmt: skip


def _depth(names: Iterable[str], blocks: str) -> int:
    return count_blocks(list(names), rf"{re.escape(blocks)}\.(\d+)\.")
