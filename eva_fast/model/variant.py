"""What EVA's student may have beside its published network: the options of its code."""

from dataclasses import dataclass
from typing import Literal

from eva_fast.layers.inputs import Statistics

RelativeBias = Literal["none", "shared", "decoupled"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """How an `EvaViT` differs from EVA-01's; by default not at all."""

    normalize: Statistics = "clip"
    """Whose mean and deviation uint8 images of three channels are normalised with."""
    patch_embed_grad: float = 1.0
    """Share of the gradient that reaches the patch embedding."""
    layer_scale: float | None = None
    """Initial gamma_1 and gamma_2 of every block; None: there are none."""
    relative_bias: RelativeBias = "none"
    """The bias of attention's scores that all blocks share (`layers/rel_pos.py`)."""


EVA01 = Variant()
VARIANT_OPTIONS = tuple(Variant.__dataclass_fields__)
