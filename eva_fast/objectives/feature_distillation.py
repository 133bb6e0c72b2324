"""Feature Distillation: the student sees the whole image and predicts the frozen teacher's features of
every token (Wei et al. 2022, and its code).

The target is what leaves the teacher's own last norm, CLS too where it has one, whitened by a norm
without weights. Loss: smooth L1 with beta 2, mean over images, tokens and channels. Student and
projector train, the student is handed on. Student and teacher see one crop, resized bilinearly.
"""

from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.data import Batch
from eva_fast.model import Backbone
from eva_fast.model.distilled import Distilled
from eva_fast.model.variant import VARIANT_OPTIONS
from eva_fast.objectives.base import Objective
from eva_fast.objectives.code_picture import squares
from eva_fast.objectives.picture import pca_colours, save_columns
from eva_fast.objectives.request import Request, teachers_view
from eva_fast.objectives.setting import Setting
from eva_fast.ops.smooth_l1 import smooth_l1

BETA = 2.0
TITLES = ("image", "teacher", "student's prediction")


class FeatureDistillation(Objective):
    """Regression of the whitened features of all tokens."""

    name = "fd"
    capturable = True
    variants = VARIANT_OPTIONS
    perfect = 0.0
    statistics = "imagenet"
    interpolation = "bilinear"
    swin = True
    backbones = "all"
    any_channels = True

    def request(self, setting: Setting) -> Request:
        """Raw features: the op of the loss whitens them. A student without CLS asks for none."""
        return Request(
            rows="all",
            point="norm",
            cls="optional" if setting.sizes.has_cls else False,
            norm_after="calibrated" if setting.config.teacher.whiten else "none",
        )

    def build(self, setting: Setting, teacher: nn.Module | None) -> Distilled:
        assert teacher is not None  # `request` asks for one
        return Distilled(setting.encoder(), cast(int, teacher.dim))

    def loss(
        self, module: nn.Module, batch: Batch, target: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        network, features = cast(Distilled, module), cast(Tensor, target)
        prediction = network(batch.images, cls=features.shape[1] > network.patches)
        return smooth_l1(prediction.contiguous(), features, BETA), {}

    def averaged(self, target: Tensor) -> Tensor:
        """The whitened rows of all tokens."""
        rows = target.flatten(0, -2).float()
        return F.layer_norm(rows, rows.shape[-1:])

    def constant_loss(self, constant: Tensor, rows: Tensor) -> Tensor:
        return F.smooth_l1_loss(constant.expand_as(rows), rows, beta=BETA)

    def after_step(self, module: nn.Module, applied: Tensor) -> None:
        encoder = cast(Distilled, module).encoder
        if isinstance(encoder, Backbone):
            encoder.after_step(applied)

    def exported(self, module: nn.Module) -> nn.Module:
        return cast(Distilled, module).encoder

    def picture(
        self, path: Path, module: nn.Module, teacher: nn.Module | None, batch: Batch
    ) -> None:
        """Images, and the teacher's and the student's whitened features of patches as PCA colours. The
        number beside a row is their mean cosine."""
        assert teacher is not None
        network, images = cast(Distilled, module), batch.images
        patches = teacher(teachers_view(batch))[:, -network.patches :]
        t = F.normalize(self.averaged(patches).view(patches.shape), dim=-1).cpu()
        p = torch.nan_to_num(network(images, cls=False).float(), posinf=0, neginf=0)
        p = F.normalize(p, dim=-1).cpu()
        columns = [
            squares(colours, network.encoder.grid, images.shape[-1])
            for colours in pca_colours(t, p)
        ]
        notes = [f"{value:+.2f}" for value in (t * p).sum(-1).mean(1).tolist()]
        save_columns(path, dict(zip(TITLES, (images, *columns))), notes, "cosine")
