"""Data: sources of images, the fields a sample has, and the one resumable loader.

    source = open_source("/data/imagenet")            # or a list, a text file, tar shards, "builtin"
    with build_loader(source, batch_size=64, mask_ratio=0.4, workers=8) as loader:
        for batch in loader: ...                      # batch.images, batch.mask

    fields = [ImageField(224), LabelField(source.classes())]
    with build_loader(source, fields, batch_size=64, order="once") as loader:
        for batch in loader: ...                      # batch.images, batch.label; then it ends

Names are loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eva_fast.data.checking import check
    from eva_fast.data.decode.pillow import BadImage
    from eva_fast.data.loader.batch import Batch, Ragged
    from eva_fast.data.loader.loader import Loader, build_loader
    from eva_fast.data.samples.bands import BandsField
    from eva_fast.data.samples.caption import CaptionField, TextField
    from eva_fast.data.samples.crop import Cropper
    from eva_fast.data.samples.fields import Field, ItemField
    from eva_fast.data.samples.image import ImageField
    from eva_fast.data.samples.label import LabelField
    from eva_fast.data.samples.mask import BlockMasker, BlockMaskField
    from eva_fast.data.samples.masked_image import masked_image_fields, sample_from_bytes
    from eva_fast.data.samples.seeds import mix64, sample_seed
    from eva_fast.data.samples.uniform_mask import UniformMaskField, uniform_mask_fields
    from eva_fast.data.sources.base import Item, Source, Subset
    from eva_fast.data.sources.open import open_source

_HOME = {
    "check": "eva_fast.data.checking",
    "open_source": "eva_fast.data.sources.open",
    "Source": "eva_fast.data.sources.base",
    "Item": "eva_fast.data.sources.base",
    "Subset": "eva_fast.data.sources.base",
    "build_loader": "eva_fast.data.loader.loader",
    "Loader": "eva_fast.data.loader.loader",
    "Batch": "eva_fast.data.loader.batch",
    "Ragged": "eva_fast.data.loader.batch",
    "Field": "eva_fast.data.samples.fields",
    "ItemField": "eva_fast.data.samples.fields",
    "ImageField": "eva_fast.data.samples.image",
    "BandsField": "eva_fast.data.samples.bands",
    "BlockMaskField": "eva_fast.data.samples.mask",
    "UniformMaskField": "eva_fast.data.samples.uniform_mask",
    "uniform_mask_fields": "eva_fast.data.samples.uniform_mask",
    "LabelField": "eva_fast.data.samples.label",
    "TextField": "eva_fast.data.samples.caption",
    "CaptionField": "eva_fast.data.samples.caption",
    "masked_image_fields": "eva_fast.data.samples.masked_image",
    "sample_from_bytes": "eva_fast.data.samples.masked_image",
    "sample_seed": "eva_fast.data.samples.seeds",
    "mix64": "eva_fast.data.samples.seeds",
    "Cropper": "eva_fast.data.samples.crop",
    "BlockMasker": "eva_fast.data.samples.mask",
    "BadImage": "eva_fast.data.decode.pillow",
}

__all__ = [
    "BadImage",
    "BandsField",
    "Batch",
    "BlockMaskField",
    "BlockMasker",
    "CaptionField",
    "Cropper",
    "Field",
    "ImageField",
    "Item",
    "ItemField",
    "LabelField",
    "Loader",
    "Ragged",
    "Source",
    "Subset",
    "TextField",
    "UniformMaskField",
    "build_loader",
    "check",
    "masked_image_fields",
    "mix64",
    "open_source",
    "sample_from_bytes",
    "sample_seed",
    "uniform_mask_fields",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'eva_fast.data' has no attribute {name!r}")
