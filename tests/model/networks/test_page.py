"""docs/students.md: its Python runs, with small networks in place of the large ones."""

import re
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.data.pictures import write_folder

timm = pytest.importorskip("timm")
pytest.importorskip("torchvision")

PAGE = Path(__file__).parents[3] / "docs" / "students.md"
SIZES = "patch_size=8, embed_dim=32, depth=1, num_heads=2"
QUICK = "batch_size=4, steps=1, device='cpu', workers=0, progress=False, kernels='torch'"
SMALL = {
    r'model="timm/vit_small_patch16_dinov3", teacher="ViT-L-14.pt"':
        f'model="timm/vit_small_patch16_dinov3", teacher="hog", img_size=32, {SIZES}, {QUICK}',
    r'model="timm/vit_small_patch16_dinov3", init_from="dinov3.safetensors",\n    teacher="ViT-L-14.pt"':
        'model="timm/vit_small_patch16_dinov3", init_from="dinov3.safetensors",\n    teacher="hog", '
        f'img_size=32, {SIZES}, {QUICK}',
    r'"vit_small_patch16_dinov3", num_classes=0':
        f'"vit_small_patch16_dinov3", num_classes=0, img_size=32, {SIZES}',
    r'model="torchvision/resnet50", teacher="ViT-L-14.pt"':
        f'model="torchvision/shufflenet_v2_x0_5", teacher="hog", img_size=64, {QUICK}',
}  # fmt: skip


def test_its_code_runs(tmp_path, monkeypatch):
    text = PAGE.read_text()
    for pattern, small in SMALL.items():
        text, count = re.subn(pattern, small, text)
        assert count == 1, pattern
    write_folder(tmp_path / "photographs", 8)
    monkeypatch.chdir(tmp_path)
    sizes = dict(patch_size=8, embed_dim=32, depth=1, num_heads=2)
    theirs = timm.create_model("vit_small_patch16_dinov3", num_classes=5, img_size=48, **sizes)
    save_file(theirs.state_dict(), "dinov3.safetensors")
    space: dict = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, space)
    trained = space["run"].model.network.state_dict()
    assert all(trained[name].equal(value) for name, value in space["model"].state_dict().items())
