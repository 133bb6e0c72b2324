"""EVA-01's own student, out of a checkout of its repository that the user names.

    git clone https://github.com/baaivision/EVA
    pytest bench/test_training.py -k step --benchmark --official EVA/EVA-01/eva

It runs beside `reference`, which stands in for it everywhere else, so that anyone can see that the
stand-in computes the same numbers and is no slower. Only its model is used: the optimiser is
PyTorch's AdamW for both, as the official `--opt adamw` makes it.
"""

import importlib
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eva_fast.baselines.official import EPS
from eva_fast.model import ModelSizes

FILE = "modeling_pretrain.py"


def load(folder: Path) -> Any:
    """The module of the official students, from the folder that holds `FILE`."""
    sys.path.insert(0, str(folder))
    try:
        with warnings.catch_warnings():  # it imports from places that timm has moved
            warnings.simplefilter("ignore")
            return importlib.import_module(FILE.removesuffix(".py"))
    finally:
        sys.path.remove(str(folder))


def official_code(folder: Path) -> type[nn.Module]:
    """A class with the interface of `eva_fast.baselines.OfficialViT`."""
    module = load(folder)

    class Student(module.VisionTransformerForMaskedImageModeling):
        def __init__(self, sizes: ModelSizes):
            super().__init__(
                img_size=sizes.img_size,
                patch_size=sizes.patch_size,
                embed_dim=sizes.embed_dim,
                depth=sizes.depth,
                num_heads=sizes.num_heads,
                mlp_ratio=sizes.mlp_hidden / sizes.embed_dim,
                predict_feature_dim=sizes.predict_dim,
                norm_layer=partial(module.LayerNormWithForceFP32, eps=EPS),
            )

        def inputs(self, mask: Tensor) -> tuple[Tensor, ...]:
            return (mask,)

        def loss(self, target: Tensor, images: Tensor, mask: Tensor) -> Tensor:
            prediction = self(images, mask).float()
            return -torch.nn.functional.cosine_similarity(prediction, target.float(), -1).mean()

    return Student
