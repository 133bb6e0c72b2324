"""The frozen teacher: features of the masked patches from a CLIP image tower, no gradient."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness import Case, Variant
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.baselines.clip_tower import PlainTower
from eva_fast.layers.inputs import normalise
from eva_fast.teachers.clip import ClipConfig, ClipTeacher, ClipTower

MODES = ("forward",)


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    """A tower of the student's width and depth; ViT-L/14, EVA-01's teacher, where that is given."""
    sizes = shape.sizes
    shapes: dict[str, Any] = dict(
        width=sizes.embed_dim,
        layers=sizes.depth,
        heads=sizes.num_heads,
        mlp_hidden=sizes.mlp_hidden,
        patch_size=sizes.patch_size,
        grid=sizes.grid,
        dim=sizes.predict_dim,
    )
    config = ClipConfig(**shapes)
    torch.manual_seed(0)
    tower = ClipTower(config, sizes.grid)
    for p in tower.parameters():
        nn.init.normal_(p, std=0.03 if p.ndim > 1 else 0.3)
    state = tower.state_dict()
    plain = PlainTower(**shapes)
    plain.load_state_dict(state)
    plain.to(shape.device, shape.dtype).eval()
    teacher = ClipTeacher("bench", config, state)
    teacher = teacher.freeze(shape.device, shape.dtype)
    raw, indices, where = shape.images(), shape.mask(), shape.bool_mask()
    images = normalise(raw, shape.dtype)
    kit.add("reference", lambda: plain(images, where))
    kit.add("tuned", lambda: _tuned(teacher, images, where))
    kit.add("eva_fast", lambda: teacher(raw, indices))
    kit.add_compiled()
    variants = {
        name: Variant(call, lambda call=call: [F.normalize(call(), dim=-1)])
        for name, call in kit.functions.items()
    }
    return Case(
        subject="teacher",
        mode=mode,
        shape=shape.label,
        device=shape.device,
        variants=variants,
        missing=kit.missing,
        tolerance=1e-4 if shape.dtype == torch.float32 else 3e-2,
        batch=shape.batch,
    )


@torch.no_grad()
def _tuned(teacher: ClipTeacher, images: Tensor, where: Tensor) -> Tensor:
    """All patches through PyTorch's fused attention, then the masked ones."""
    return teacher.tower(images)[where].float()
