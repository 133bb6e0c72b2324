"""Feature Distillation with a ViT student and a CLIP teacher."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file

import eva_fast
from eva_fast.model import BeitViT, ModelSizes
from eva_fast.model.distilled import Distilled
from tests.golden import Check, fd, read

SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_hidden")
TEACHER = "teacher."


def check(path: Path) -> Iterator[Check]:
    tensors, meta = read(path)
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "clip.safetensors"
        save_file(
            {k.removeprefix(TEACHER): v for k, v in tensors.items() if k.startswith(TEACHER)}, own
        )
        teacher = eva_fast.load_teacher(own, point="norm", cls=True)
    yield from fd.check(tensors, meta, network, teacher)


def network(tensors: dict, meta: dict, kernels: str) -> Distilled:
    """The file's student and projector with their parameters."""
    sizes = ModelSizes(**{name: int(meta[name]) for name in SIZES})
    encoder = BeitViT(sizes, layer_scale=float(meta["layer_scale"]), kernels=kernels)
    model = Distilled(encoder, int(meta["teacher_dim"]))
    model.load_state_dict(fd.parameters(tensors))
    return model
