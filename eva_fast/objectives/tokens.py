"""Masked image modelling with tokens: masked patches are replaced by a token, and the student predicts
the codes that a frozen tokenizer gives them (Bao et al. 2022, BEiT; Peng et al. 2022, BEiT v2, and its
code).

Loss: cross-entropy over the codes, once from the patches and once from the branch of the CLS token.
The tokenizer is a run of the objective `vqkd` or a file of the official code: `teacher="runs/vq"`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.data import Batch, Field
from eva_fast.errors import UsageError
from eva_fast.model.token_vit import TokenViT
from eva_fast.objectives.base import Objective
from eva_fast.objectives.blocks import block_masks
from eva_fast.objectives.code_picture import code_colours, squares
from eva_fast.objectives.picture import GREY, save_columns
from eva_fast.objectives.request import Request, teachers_view
from eva_fast.objectives.setting import Setting
from eva_fast.teachers.config import BUILTIN
from eva_fast.weights import write_code_model

MASKED_SHARE, BLOCK_SHARE = 75 / 196, 16 / 196
WIDE, WIDE_LAYER_SCALE, LAYER_SCALE = 1024, 1e-5, 0.1
# Share of a uniform guess in the constant prediction, which must not give a code no chance at all.
UNIFORM = 0.01
TITLES = ("image", "masked image", "tokenizer", "student's prediction")


class Tokens(Objective):
    """Classification of masked patches."""

    name = "tokens"
    codes: int
    """How many the tokenizer has; known once the student is built, as is `terms`."""
    terms: int
    """Cross-entropies in the loss."""
    metrics = ("patch_loss", "branch_loss", "accuracy", "codes_in_batch")
    capturable = True
    perfect = 0.0
    statistics = "imagenet"
    color_jitter = 0.4

    def sample(self, setting: Setting) -> list[Field]:
        if setting.config.objective.branch_depth and setting.vit.depth < 2:
            raise UsageError("tokens: a student of one block has no branch: set branch_depth=0")
        return [*super().sample(setting), block_masks(setting, MASKED_SHARE, BLOCK_SHARE)]

    def request(self, setting: Setting) -> Request:
        teacher = setting.config.teacher
        if teacher.whiten and teacher.teacher != BUILTIN:  # which gives no codes at all
            raise UsageError("objective 'tokens' predicts codes, which cannot be whitened")
        return Request(rows="masked", point="code")

    def build(self, setting: Setting, teacher: nn.Module | None) -> TokenViT:
        options, sizes = setting.config.objective, setting.vit
        self.codes = cast(int, cast(Any, teacher).dim)
        self.terms = 2 if options.branch_depth else 1
        return setting.as_run(
            TokenViT(
                replace(sizes, predict_dim=self.codes),
                drop_path=setting.config.model.drop_path,
                layer_scale=WIDE_LAYER_SCALE if sizes.embed_dim >= WIDE else LAYER_SCALE,
                branch_depth=options.branch_depth,
                compute_dtype=setting.compute_dtype,
                kernels=setting.config.run.kernels,
            )
        )

    def loss(
        self, module: nn.Module, batch: Batch, target: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        student, codes = cast(TokenViT, module), cast(Tensor, target)
        found = student.losses(batch.images, batch.mask, codes)
        branch = torch.zeros_like(found.patches) if found.branch is None else found.branch
        used = (self.averaged(codes) > 0).float().mean()
        measured = (found.patches, branch, found.right, used)
        return found.total(), dict(zip(self.metrics, measured))

    def example(
        self, setting: Setting, teacher: nn.Module | None, size: int
    ) -> tuple[Batch, Tensor | None]:
        batch, _ = super().example(setting, None, size)
        codes = cast(int, cast(Any, teacher).dim)
        return batch, torch.randint(codes, (batch.mask.numel(),), device=setting.device)

    def averaged(self, target: Tensor) -> Tensor:
        """[1, codes]: the share that each code has of the micro-batch."""
        ones = torch.ones_like(target, dtype=torch.float32)
        counts = torch.zeros(self.codes, device=target.device).index_add_(0, target, ones)
        return counts[None] / max(len(target), 1)

    def constant_loss(self, constant: Tensor, rows: Tensor) -> Tensor:
        """Of guessing each code as often as it was seen: the cross-entropy of the codes' shares."""
        guess = torch.lerp(constant, torch.full_like(constant, 1 / len(constant)), UNIFORM)
        return -self.terms * (rows * guess.log()).sum()

    def picture(
        self, path: Path, module: nn.Module, teacher: nn.Module | None, batch: Batch
    ) -> None:
        """Images, masks, the tokenizer's codes and the student's most likely ones, a colour a code. The
        number beside a row is the share of its masked patches whose code is right."""
        student, images = cast(TokenViT, module), batch.images
        patches = student.forward_features(images, batch.mask)[:, 1:]
        told = student.lm_head(patches.to(student.lm_head.weight.dtype)).argmax(-1)
        codes, masked = cast(nn.Module, teacher)(teachers_view(batch)), batch.mask.long()
        hidden = torch.zeros_like(codes, dtype=torch.uint8).scatter_(1, masked, 1)
        side = images.shape[-1]
        hidden_pixels = F.interpolate(hidden.view(-1, 1, *student.grid), size=side).bool()
        grey = images.new_tensor(GREY).view(3, 1, 1)
        columns = (
            images, torch.where(hidden_pixels, grey, images),
            squares(code_colours(codes), student.grid, side),
            squares(code_colours(told), student.grid, side),
        )  # fmt: skip
        right = (told == codes).gather(1, masked).float().mean(1)
        notes = [f"{share:.0%}" for share in right.tolist()]
        save_columns(path, dict(zip(TITLES, columns)), notes, "right")

    def save(
        self, module: nn.Module, path: Path, weights: dict[str, Tensor] | None = None
    ) -> nn.Module:
        """The whole student in official naming."""
        write_code_model(cast(TokenViT, module), path, weights)
        return module
