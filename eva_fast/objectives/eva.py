"""EVA-01: masked patches of the image are replaced by a token, and the student predicts the frozen
teacher's features of them (Fang et al., CVPR 2023, and its code).

Loss: minus the mean cosine over all masked patches. The student is all that trains.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from eva_fast.data import Batch, Field
from eva_fast.errors import UsageError
from eva_fast.model import EvaViT, MaskedBackbone, is_beit
from eva_fast.model.variant import VARIANT_OPTIONS
from eva_fast.objectives.blocks import block_masks
from eva_fast.objectives.masked_features import MaskedFeatures, head_alternatives
from eva_fast.objectives.picture import save_picture
from eva_fast.objectives.request import teachers_view
from eva_fast.objectives.setting import Setting

MASKED_SHARE, BLOCK_SHARE = 105 / 256, 1 / 16


class Eva(MaskedFeatures):
    """Regression of masked features."""

    name = "eva"
    capturable = True
    variants = VARIANT_OPTIONS
    backbones = "masked"
    any_channels = True
    baselines = ("official", "tuned")

    def sample(self, setting: Setting) -> list[Field]:
        name = setting.config.model.model
        if is_beit(name):
            raise UsageError(
                f"the objective 'eva' trains {name.replace('beit', 'eva', 1)}, not {name}: "
                "relative_bias='shared' and layer_scale=0.1 give it what BEiT's blocks have"
            )
        return [*super().sample(setting), block_masks(setting, MASKED_SHARE, BLOCK_SHARE)]

    def build(self, setting: Setting, teacher: nn.Module | None) -> EvaViT | MaskedBackbone:
        assert teacher is not None  # `request` asks for one
        return setting.student(predict_dim=cast(int, teacher.dim))

    def loss(
        self, module: nn.Module, batch: Batch, target: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return cast(EvaViT, module).loss(batch.images, batch.mask, cast(Tensor, target)), {}

    def alternatives(
        self, module: nn.Module, batch: Batch, target: Tensor | None
    ) -> dict[str, dict[str, Callable[[], Any]]]:
        """The head and loss of the batch's masked patches."""
        if isinstance(module, MaskedBackbone):  # its last norm is in the network
            return {}
        student = cast(EvaViT, module)
        dtype = student.precision.dtype(student.pos_embed.dtype, batch.images.device.type)
        return head_alternatives(student.lm_head, student.norm, dtype, cast(Tensor, target))

    def after_step(self, module: nn.Module, applied: Tensor) -> None:
        if isinstance(module, MaskedBackbone):
            module.encoder.after_step(applied)

    def exported(self, module: nn.Module) -> nn.Module:
        """The student; of another library's network without mask token and head."""
        return module.encoder if isinstance(module, MaskedBackbone) else module

    def picture(
        self, path: Path, module: nn.Module, teacher: nn.Module | None, batch: Batch
    ) -> None:
        """Images, masks, teacher features and the student's predictions as PCA colours."""
        assert teacher is not None
        student = cast(EvaViT, module)
        features = student.forward_features(batch.images, batch.mask)[:, student.prefix_tokens :]
        prediction = student.lm_head(features.to(student.lm_head.weight.dtype))
        save_picture(
            path,
            batch.images,
            batch.mask,
            teacher(teachers_view(batch)),
            prediction,
            student.grid,
        )
