"""VQ-KD's tokenizer as a frozen teacher: the index of each patch's code."""

import json
import re
from collections.abc import Iterable

import torch
from torch import Tensor

from eva_fast.errors import UsageError
from eva_fast.layers import Precision, keep_copies
from eva_fast.model import ModelSizes
from eva_fast.model.vqkd import HALF, VqKd, VqKdSizes
from eva_fast.teachers.base import Teacher, patch_index
from eva_fast.weights import Weights

CODEBOOK = "quantize.embedding.weight"
HEAD_WIDTH = 64


class CodeTeacher(Teacher):
    """A teacher that gives codes: int64 [B,N] of all patches, [B*K] of the masked ones; `dim` is the
    number of codes, and a subclass's `code_indices` gives [B,N] of prepared images."""

    points = ("code",)

    def code_indices(self, images: Tensor) -> Tensor:
        """int64 [B,N] of normalised images [B,3,h,w]."""
        raise TypeError(f"{type(self).__name__} does not say how it finds codes")

    @torch.no_grad()
    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        index = patch_index(mask, len(images), self.grid)
        codes = self.code_indices(self.prepare(images))
        return codes if index is None else codes.gather(1, index.to(codes.device)).flatten()


class TokenizerTeacher(CodeTeacher):
    """A run of the objective `vqkd`, or a file of the official code. The decoder is left out."""

    capturable = True

    def __init__(self, name: str, weights: Weights, grid: tuple[int, int] | None, whiten: bool):
        sizes = tokenizer_sizes(weights)
        side = sizes.student.img_size
        check_code_grid(name, sizes.student.grid, grid)
        super().__init__(name, sizes.codes, sizes.student.grid, (side, side), HALF, HALF)
        if whiten:
            raise UsageError(f"teacher {name!r} gives codes, which cannot be whitened")
        self.tokenizer = VqKd(sizes, decodes=False)
        load_tokenizer(self.tokenizer, weights)

    def freeze(self, device: str | torch.device, dtype: torch.dtype | None) -> Teacher:
        """Only the encoder's blocks compute in 16 bits: codes are chosen in float32."""
        if dtype is None and torch.device(device).type == "cuda":
            dtype = torch.bfloat16
        self.tokenizer.precision = Precision(dtype or torch.float32)
        super().freeze(device, torch.float64 if dtype == torch.float64 else torch.float32)
        keep_copies(self.tokenizer, self.tokenizer.precision.chosen)
        return self

    def code_indices(self, images: Tensor) -> Tensor:
        return self.tokenizer.codes(images)


def load_tokenizer(model: VqKd, weights: Weights) -> None:
    """Reads a tokenizer's parameters and codebook; a decoder only where the model has one. UsageError
    lists what is missing or of another shape."""
    own = model.state_dict()
    faults = [
        name if name not in weights else f"{name} {tuple(weights[name].shape)}"
        for name in own
        if name not in weights or weights[name].numel() != own[name].numel()
    ]
    if faults:
        raise UsageError(
            f"{weights.path} is not a whole tokenizer of these sizes; missing or of another shape: "
            f"{', '.join(faults[:8])}{' ...' if len(faults) > 8 else ''}"
        )
    model.load_state_dict({name: weights[name].view(value.shape) for name, value in own.items()})


def tokenizer_sizes(weights: Weights) -> VqKdSizes:
    """Sizes from the file's own words, else from its shapes, with heads of 64. UsageError where names
    are missing."""
    if "sizes" in weights.metadata:
        told = json.loads(weights.metadata["sizes"])
        return VqKdSizes(**{**told, "student": ModelSizes(**told["student"])})
    try:
        dim, _, patch, _ = weights["encoder.patch_embed.proj.weight"].shape
        side = round((weights["encoder.pos_embed"].shape[1] - 1) ** 0.5)
        hidden = weights["encoder.blocks.0.mlp.fc1.weight"].shape[0]
        codes, width = weights[CODEBOOK].shape
    except KeyError as error:
        raise UsageError(f"{weights.path} is not a VQ-KD tokenizer: it lacks {error}") from None
    student = ModelSizes(
        img_size=side * patch, patch_size=patch, embed_dim=dim, depth=_depth(weights, "encoder"),
        num_heads=max(1, dim // HEAD_WIDTH), mlp_hidden=hidden, predict_dim=_told(weights),
    )  # fmt: skip
    depth = _depth(weights, "decoder")
    return VqKdSizes(student=student, codes=codes, code_dim=width, decoder_depth=depth)


def check_code_grid(name: str, own: tuple[int, int], asked: tuple[int, int] | None) -> None:
    """UsageError where codes are wanted of another grid than a tokenizer was trained on."""
    if asked is not None and asked != own:
        raise UsageError(
            f"tokenizer {name!r} gives the codes of a {own[0]}x{own[1]} grid of patches, and the "
            f"student has {asked[0]}x{asked[1]}: choose img_size and patch_size with "
            f"{own[0]} patches a side"
        )


def _depth(weights: Iterable[str], tower: str) -> int:
    found = [int(m[1]) for name in weights if (m := re.match(rf"{tower}\.blocks\.(\d+)\.", name))]
    return max(found, default=0) + bool(found)


def _told(weights: Weights) -> int:
    last = "decode_task_layer.2.bias"
    return len(weights[last]) if last in weights else 1
