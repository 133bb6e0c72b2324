"""EVA-01: masked patches of the image are replaced by a token, and the student predicts the frozen
teacher's features of them (Fang et al., CVPR 2023, and its code).

Loss: minus the mean cosine over all masked patches. The student is all that trains.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.data import Batch, BlockMaskField, Field
from eva_fast.errors import UsageError
from eva_fast.layers import Stream
from eva_fast.model import EvaViT, head
from eva_fast.objectives.base import Objective
from eva_fast.objectives.picture import save_picture
from eva_fast.objectives.request import Request
from eva_fast.objectives.setting import Setting
from eva_fast.ops import choose

MASKED_SHARE, BLOCK_SHARE = 105 / 256, 1 / 16


class Eva(Objective):
    """Regression of masked features."""

    name = "eva"
    capturable = True
    baselines = ("official", "tuned")

    def sample(self, setting: Setting) -> list[Field]:
        options, patches = setting.config.objective, setting.sizes.num_patches
        count, block = options.mask_count, options.mask_min_block
        count = max(1, round(patches * MASKED_SHARE)) if count is None else count
        block = max(1, round(patches * BLOCK_SHARE)) if block is None else block
        if not 0 < count < patches:
            raise UsageError(f"mask_count must be between 1 and {patches - 1} here, got {count}")
        if not 0 < block <= patches:
            raise UsageError(f"mask_min_block must be between 1 and {patches} here, got {block}")
        return [*super().sample(setting), BlockMaskField(setting.sizes.grid, count, block)]

    def request(self, setting: Setting) -> Request:
        return Request(
            rows="masked", norm_after="calibrated" if setting.config.teacher.whiten else "none"
        )

    def build(self, setting: Setting, teacher: nn.Module | None) -> EvaViT:
        assert teacher is not None  # `request` asks for one
        return setting.student(predict_dim=cast(int, teacher.dim))

    def loss(
        self, module: nn.Module, batch: Batch, target: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return cast(EvaViT, module).loss(batch.images, batch.mask, cast(Tensor, target)), {}

    def averaged(self, target: Tensor) -> Tensor:
        """Unit vectors: their mean is the direction with the best mean cosine, so that no constant
        does better."""
        return F.normalize(target.float(), dim=1)

    def constant_loss(self, constant: Tensor, rows: Tensor) -> Tensor:
        return -(rows @ F.normalize(constant, dim=0)).mean()

    def alternatives(
        self, module: nn.Module, batch: Batch, target: Tensor | None
    ) -> dict[str, dict[str, Callable[[], Any]]]:
        """The head and loss of the batch's masked patches, composed and fused, where there is a
        fused one."""
        student, device = cast(EvaViT, module), batch.images.device
        if not choose.can_run(head.OP, "triton", device.type):
            return {}
        dtype, rows = (
            student.precision.dtype(student.pos_embed.dtype, device.type),
            batch.mask.numel(),
        )
        x = torch.randn(rows, 1, student.sizes.embed_dim, dtype=dtype, device=device)
        branch, bias = torch.randn_like(x), torch.randn_like(student.lm_head.weight[0])
        stream = Stream(*(t.requires_grad_() for t in (x, branch, bias)))

        def run(loss: Callable[..., Tensor]) -> None:
            loss(student.lm_head, stream, student.norm, target).backward()

        return {
            head.OP: {
                "torch": functools.partial(run, head.composed_loss),
                "triton": functools.partial(run, head.fused_loss),
            }
        }

    def picture(
        self, path: Path, module: nn.Module, teacher: nn.Module | None, batch: Batch
    ) -> None:
        """Images, masks, teacher features and the student's predictions as PCA colours."""
        assert teacher is not None
        student = cast(EvaViT, module)
        features = student.forward_features(batch.images, batch.mask)[:, 1:]
        prediction = student.lm_head(features.to(student.lm_head.weight.dtype))
        save_picture(
            path, batch.images, batch.mask, teacher(batch.images), prediction, student.grid
        )
