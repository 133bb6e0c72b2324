"""A teacher from outside the package, through its public seam alone: a `Teacher`, or any module that
has `dim` and is called as teacher(images, mask=None). Nothing else of the package is imported."""

import pytest
import torch
from torch import nn

import eva_fast
from eva_fast.teachers import Teacher

TINY = dict(
    data="builtin", model="eva_ti_patch8_32", embed_dim=32, depth=1, num_heads=4, mlp_hidden=48,
    batch_size=8, steps=2, workers=0, device="cpu", kernels="torch", progress=False,
)  # fmt: skip


class EdgesTeacher(Teacher):
    """Patch means of brightness and of its differences down and across."""

    def __init__(self, grid):
        super().__init__("edges", dim=3, grid=grid, input_size=None, whiten=True)

    def patch_features(self, images, index):
        grey = images.mean(1, keepdim=True)
        maps = [grey, nn.functional.pad(grey.diff(dim=2), (0, 0, 0, 1))]
        maps = torch.cat([*maps, nn.functional.pad(grey.diff(dim=3), (0, 1))], 1)
        features = nn.functional.adaptive_avg_pool2d(maps, self.grid).flatten(2).transpose(1, 2)
        if index is None:
            return features
        return features.gather(1, index.unsqueeze(-1).expand(-1, -1, self.dim))


class ColourTeacher(nn.Module):
    """Mean RGB of each patch of 8 pixels; no base class, no state."""

    dim = 3

    def forward(self, images, mask=None):
        rgb = nn.functional.avg_pool2d(images.float(), 8).flatten(2).transpose(1, 2)
        if mask is None:
            return rgb
        index = (
            mask.long() if mask.dtype != torch.bool else mask.nonzero()[:, 1].view(len(mask), -1)
        )
        return rgb.gather(1, index.unsqueeze(-1).expand(-1, -1, 3)).flatten(0, 1)


@pytest.mark.parametrize("whiten", [False, True])
def test_a_run_with_it(tmp_path, whiten):
    teacher = EdgesTeacher((4, 4)) if whiten else ColourTeacher()
    result = eva_fast.pretrain(teacher=teacher, out=tmp_path / "run", whiten=whiten, **TINY)
    assert result.metrics["step"] == 2 and -1 <= result.metrics["loss"] <= 1
    assert result.model.sizes.predict_dim == 3 and result.picture.is_file()
