"""The student: `create_model` builds one by name or by sizes.

Names are loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eva_fast.model.beit import BeitViT
    from eva_fast.model.mae import DecoderSizes, MaeEncoder, MaskedAutoencoder
    from eva_fast.model.networks.backbone import Backbone
    from eva_fast.model.networks.masked import MaskedBackbone
    from eva_fast.model.networks.sizes import BackboneSizes, backbone_sizes_of, is_backbone
    from eva_fast.model.registry import Sizes, create_model, named_sizes
    from eva_fast.model.sizes import LONG, PRESETS, ModelSizes, is_beit, sizes_of
    from eva_fast.model.student import VitStudent
    from eva_fast.model.swin import SwinV2
    from eva_fast.model.swin_sizes import SwinSizes, is_swin, swin_sizes_of
    from eva_fast.model.vit import EvaViT

_HOME = {
    "create_model": "registry",
    "Backbone": "networks.backbone",
    "BackboneSizes": "networks.sizes",
    "MaskedBackbone": "networks.masked",
    "backbone_sizes_of": "networks.sizes",
    "is_backbone": "networks.sizes",
    "Sizes": "registry",
    "BeitViT": "beit",
    "EvaViT": "vit",
    "VitStudent": "student",
    "DecoderSizes": "mae",
    "MaeEncoder": "mae",
    "MaskedAutoencoder": "mae",
    "LONG": "sizes",
    "PRESETS": "sizes",
    "ModelSizes": "sizes",
    "is_beit": "sizes",
    "sizes_of": "sizes",
    "named_sizes": "registry",
    "SwinV2": "swin",
    "SwinSizes": "swin_sizes",
    "is_swin": "swin_sizes",
    "swin_sizes_of": "swin_sizes",
}

__all__ = [
    "LONG",
    "PRESETS",
    "Backbone",
    "BackboneSizes",
    "BeitViT",
    "DecoderSizes",
    "EvaViT",
    "MaeEncoder",
    "MaskedAutoencoder",
    "MaskedBackbone",
    "ModelSizes",
    "Sizes",
    "SwinSizes",
    "SwinV2",
    "VitStudent",
    "backbone_sizes_of",
    "create_model",
    "is_backbone",
    "is_beit",
    "is_swin",
    "named_sizes",
    "sizes_of",
    "swin_sizes_of",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
