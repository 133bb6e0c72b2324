"""Feature Distillation with a Swin V2 student and a Swin teacher."""

import json
from collections.abc import Iterator
from pathlib import Path

import eva_fast
from eva_fast.model import SwinSizes, SwinV2
from eva_fast.model.distilled import Distilled
from tests.golden import Check, fd, read

SIZES = ("img_size", "patch_size", "embed_dim", "depths", "num_heads", "window_size")


def check(path: Path) -> Iterator[Check]:
    yield from fd.check(*read(path), network, eva_fast.load_teacher(path))


def network(tensors: dict, meta: dict, kernels: str) -> Distilled:
    """The file's student and projector with their parameters."""
    found = {name: json.loads(meta[name]) for name in SIZES}
    sizes = SwinSizes(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})
    model = Distilled(SwinV2(sizes, kernels=kernels), int(meta["teacher_dim"]))
    model.load_state_dict(fd.parameters(tensors))
    return model
