"""Feature Distillation's module: a student and the projector from its tokens to a teacher's features
(Wei et al. 2022, and its code, whose names these are: `encoder.*`, `decoder.0`, a 1x1 Conv1d)."""

from typing import Any

from torch import Tensor, nn

from eva_fast.layers import PointwiseProjection, plain


class Distilled(nn.Module):
    """Predictions of a teacher's features from all tokens of the whole image.

    encoder: a student with `tokens(images)` before its final `norm`, `width`, `fused`, and the CLS token
        first where its `sizes.has_cls`: an `EvaViT`, a `BeitViT`, a `SwinV2` or a `Backbone`.
    dim: the teacher's width C.
    """

    def __init__(self, encoder: Any, dim: int):
        super().__init__()
        self.encoder = encoder
        kind = PointwiseProjection if encoder.fused else plain.PointwiseProjection
        self.decoder = nn.Sequential(kind(encoder.width, dim, 1))

    @property
    def has_cls(self) -> bool:
        return self.encoder.sizes.has_cls

    @property
    def patches(self) -> int:
        rows, columns = self.encoder.grid
        return rows * columns

    def forward(self, images: Tensor, cls: bool = True) -> Tensor:
        """[B,T,C] of all tokens; without those of CLS where not `cls`. images: as the student takes
        them."""
        encoder: Any = self.encoder
        projector: Any = self.decoder[0]
        with encoder.precision.region(images.device.type):
            rows = projector.project(encoder.tokens(images), encoder.norm)
        tokens = rows.view(len(images), -1, rows.shape[-1])
        return tokens[:, 1:] if self.has_cls and not cls else tokens
