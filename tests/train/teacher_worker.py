"""One of two processes of test_teacher_sharding.py: kinds of teachers, whole and in shards."""

import sys
from pathlib import Path

import torch

import eva_fast
from eva_fast.ops.shards import is_shard, local
from eva_fast.teachers import load_teacher
from eva_fast.teachers.clip import ClipConfig, ClipTeacher, ClipTower
from eva_fast.teachers.swin import SwinConfig, SwinTeacher, SwinTower
from eva_fast.teachers.vit import VitConfig, VitTeacher, VitTower
from eva_fast.train.processes import joined
from eva_fast.train.sharding import units
from eva_fast.train.teacher_sharding import gathered, shard_teacher
from eva_fast.world import asked_for
from tests.train.several import OPTIONS

OUT, GRID, WIDTH = Path(sys.argv[1]), (4, 4), 36
CPU = torch.device("cpu")


def drawn(tower):
    """A state dict of that tower's names and sizes, the same on each process."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(value.shape, generator=generator) * 0.2
        for name, value in tower.state_dict().items()
    }


def clip():
    config = ClipConfig(
        width=WIDTH, layers=3, heads=2, mlp_hidden=50, patch_size=8, grid=GRID, dim=20
    )
    return ClipTeacher("clip", config, drawn(ClipTower(config, GRID)), GRID)


def vit():
    config = VitConfig(
        width=WIDTH, layers=3, heads=2, mlp_hidden=50, patch_size=8, grid=GRID, prefix=1
    )
    state = drawn(VitTower(config, GRID))
    state["cls_token"] = state.pop("prefix")[None]
    state["pos_embed"] = torch.cat([torch.zeros(1, WIDTH), state.pop("positions")])[None]
    return VitTeacher("vit", config, state, GRID)


def swin():
    config = SwinConfig(
        width=16, depths=(2, 2), heads=(2, 2), windows=(4, 4), mlp_hidden=24, patch_size=4
    )
    return SwinTeacher("swin", config, drawn(SwinTower(config, GRID)), GRID)


class Foreign(torch.nn.Module):
    """Nobody knows who reads its weights."""

    dim, name, grid = 12, "foreign", GRID

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        layers = (torch.nn.Linear(192, 12), torch.nn.Linear(12, 12))
        self.layers = torch.nn.ModuleList(layers)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, images, mask=None):
        patches = images.float().unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5)
        first, second = self.layers
        return torch.nn.functional.linear(first(patches.reshape(-1, 16, 192)), second.weight)


def compare(teacher, blocks):
    """Features of the whole one are those of its shards, and of one process alone with all of it."""
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    mask = torch.tensor([[1, 5, 6], [0, 2, 15]], dtype=torch.int32)
    masks = [None] if isinstance(teacher, Foreign) else [None, mask]
    whole = [teacher(images, m) for m in masks]
    held = [p.numel() for p in teacher.parameters() if p.is_contiguous()]
    to = asked_for()
    shard_teacher(teacher, to)
    assert len([u for u in units(teacher, frozen=True) if is_shard(next(u.parameters()))]) >= blocks
    for _ in range(2):
        for found, m in zip(whole, masks, strict=True):
            assert torch.equal(teacher(images, m), found)
        shards = [local(p) for p in teacher.parameters() if is_shard(p)]
        assert len(shards) == len(held) and sum(p.numel() for p in shards) <= 0.6 * sum(held)
        with gathered(teacher):
            if to.first:
                assert torch.equal(teacher(images), whole[0])


def main():
    to = asked_for()
    with joined(to, CPU, 2.0), torch.no_grad():
        for teacher, blocks in ((clip(), 3), (vit(), 3), (swin(), 4), (Foreign().eval(), 0)):
            if not isinstance(teacher, Foreign):
                teacher = teacher.freeze(CPU, None)
            compare(teacher.requires_grad_(False), blocks)
        compare(load_teacher("builtin", grid=GRID, device="cpu"), 0)
        hog = load_teacher("hog", grid=GRID, device="cpu")
        shard_teacher(hog, to)  # nothing to share
    options = {**OPTIONS, "steps": 4, "picture_every": 2, "checkpoint_every": 2}
    for sharding in ("replicate", "shard"):
        teacher = clip().freeze(CPU, None)
        options |= {"teacher": teacher, "teacher_sharding": sharding, "patch_size": 8}
        eva_fast.pretrain(out=OUT / sharding, **options)


if __name__ == "__main__":
    main()
