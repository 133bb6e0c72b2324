"""Features after the last norm, with the CLS token: of CLIP, and of timm's ViTs (DINO, DeiT)."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from eva_fast import load_teacher
from eva_fast.layers.inputs import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, normalise
from tests.teachers.openai_tower import Clip

IMAGES = torch.randint(
    256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    torch.manual_seed(0)
    model = Clip(size=32, patch=8, width=64, heads=1, layers=2, hidden=96, dim=24).eval()
    path = tmp_path_factory.mktemp("clip") / "ViT-quickgelu.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return model.visual, path


@torch.no_grad()
def test_clip_before_its_projection(clip):
    tower, path = clip
    teacher = load_teacher(path, point="norm", cls=True)
    assert (teacher.dim, teacher.cls, teacher.points) == (64, True, ("norm",))
    x = normalise(IMAGES, torch.float32, CLIP_MEAN, CLIP_STD)
    x = tower.conv1(x).flatten(2).mT
    x = torch.cat([tower.class_embedding.expand(2, 1, -1), x], 1) + tower.positional_embedding
    expected = tower.ln_post(tower.transformer(tower.ln_pre(x).mT.mT.transpose(0, 1)))
    found = teacher(IMAGES)
    torch.testing.assert_close(found, expected.transpose(0, 1), rtol=1e-4, atol=1e-5)
    mask = torch.tensor([[0, 5], [3, 15]]).int()
    rows = teacher(IMAGES, mask)
    torch.testing.assert_close(
        rows, torch.cat([found[0, [1, 6]], found[1, [4, 16]]]), rtol=1e-5, atol=1e-5
    )
    patches = load_teacher(path, point="norm")(IMAGES)
    torch.testing.assert_close(patches, found[:, 1:], rtol=1e-5, atol=1e-5)
    projected = load_teacher(path, cls="optional")(IMAGES)
    torch.testing.assert_close(projected, found @ tower.proj, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 3])
@torch.no_grad()
def test_a_vit_of_timm(tmp_path, registers):
    torch.manual_seed(0)
    options = dict(
        img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=0,
        reg_tokens=registers, no_embed_class=bool(registers),
    )  # fmt: skip
    model = timm.models.VisionTransformer(**options).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    teacher = load_teacher(f"timm/deit_base_patch16_224:{path}", cls=True, point="norm")
    expected = model.forward_features(normalise(IMAGES, torch.float32, IMAGENET_MEAN, IMAGENET_STD))
    kept = [0, *range(1 + registers, expected.shape[1])]
    torch.testing.assert_close(teacher(IMAGES), expected[:, kept], rtol=1e-4, atol=1e-5)
    mask = torch.tensor([[0, 5], [3, 15]]).int()
    found = teacher(IMAGES, mask).view(2, 2, 64)
    index = (mask + 1 + registers).long()[..., None].expand(-1, -1, 64)
    torch.testing.assert_close(found, expected.gather(1, index), rtol=1e-4, atol=1e-5)


def test_what_a_teacher_does_not_have():
    assert not load_teacher("hog", grid=2, cls="optional", point="norm").cls
    with pytest.raises(ValueError, match="'hog' gives no features of a CLS token"):
        load_teacher("hog", grid=2, cls=True)
    with pytest.raises(ValueError, match="'proj' or 'norm', not at 'code'"):
        load_teacher("hog", grid=2, point="code")
