"""MAE-style EVA (EVA-L): an encoder sees the visible patches alone, a decoder of four blocks predicts
the frozen teacher's features of the dropped ones (Fang et al., EVA-01's MAE code and log).

Loss: minus the mean cosine over all dropped patches. The published code minimises plus the cosine, its
log shows minus. Encoder and decoder train; the encoder is handed on, in timm's names. No drop-path.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from eva_fast.data import Batch, Field
from eva_fast.model import MaeEncoder, MaskedAutoencoder
from eva_fast.objectives.masked_features import MaskedFeatures, head_alternatives
from eva_fast.objectives.picture import save_picture
from eva_fast.objectives.request import teachers_view
from eva_fast.objectives.setting import Setting
from eva_fast.objectives.visible import uniform_masks

DECODER_DEPTH = 4


class Mae(MaskedFeatures):
    """Features of dropped patches from the visible ones."""

    name = "mae"
    capturable = True
    variants = ("normalize",)
    any_channels = True

    def sample(self, setting: Setting) -> list[Field]:
        return [*super().sample(setting), *uniform_masks(setting)]

    def build(self, setting: Setting, teacher: nn.Module | None) -> MaskedAutoencoder:
        assert teacher is not None  # `request` asks for one
        return setting.autoencoder(cast(int, teacher.dim), DECODER_DEPTH, self.statistics)

    def loss(
        self, module: nn.Module, batch: Batch, target: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        network = cast(MaskedAutoencoder, module)
        return network.loss(batch.images, batch.visible, batch.mask, cast(Tensor, target)), {}

    def alternatives(
        self, module: nn.Module, batch: Batch, target: Tensor | None
    ) -> dict[str, dict[str, Callable[[], Any]]]:
        """The head and loss of the batch's dropped patches."""
        network = cast(MaskedAutoencoder, module)
        dtype = network.dtype(batch.images.device.type)
        pred, norm = network.decoder_pred, network.decoder_norm
        return head_alternatives(pred, norm, dtype, cast(Tensor, target))

    def exported(self, module: nn.Module) -> MaeEncoder:
        return cast(MaskedAutoencoder, module).encoder

    def picture(
        self, path: Path, module: nn.Module, teacher: nn.Module | None, batch: Batch
    ) -> None:
        """Images, masks, teacher features and the decoder's predictions as PCA colours."""
        assert teacher is not None
        network = cast(MaskedAutoencoder, module)
        prediction = network(batch.images, batch.visible)
        save_picture(
            path,
            batch.images,
            batch.mask,
            teacher(teachers_view(batch)),
            prediction,
            network.grid,
        )
