"""VQ-KD's tokenizer as a frozen teacher: the index of each patch's code."""

import torch
from torch import Tensor

from eva_fast.errors import UsageError
from eva_fast.layers import Precision, keep_copies
from eva_fast.model.vqkd import HALF, VqKd
from eva_fast.teachers.base import Teacher, patch_index


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
    """A run of the objective `vqkd`, or a file of the official code, whose decoder is left out
    (`decodes=False`)."""

    capturable = True

    def __init__(
        self, name: str, tokenizer: VqKd, grid: tuple[int, int] | None, whiten: bool = False
    ):
        side = tokenizer.sizes.student.img_size
        check_code_grid(name, tokenizer.grid, grid)
        if whiten:
            raise UsageError(f"teacher {name!r} gives codes, which cannot be whitened")
        super().__init__(name, tokenizer.sizes.codes, tokenizer.grid, (side, side), HALF, HALF)
        self.tokenizer = tokenizer

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


def check_code_grid(name: str, own: tuple[int, int], asked: tuple[int, int] | None) -> None:
    """UsageError where codes are wanted of another grid than a tokenizer was trained on."""
    if asked is not None and asked != own:
        raise UsageError(
            f"tokenizer {name!r} gives the codes of a {own[0]}x{own[1]} grid of patches, and the "
            f"student has {asked[0]}x{asked[1]}: choose img_size and patch_size with "
            f"{own[0]} patches a side"
        )
