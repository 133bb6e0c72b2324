"""Teachers by name alone: dimensions, parameters and arithmetic of the real ones."""

import pytest
import torch

from eva_fast.config import Config
from eva_fast.errors import UsageError
from eva_fast.planning.counter import Recorder
from eva_fast.planning.run import PlannedRun
from eva_fast.planning.teachers import OPENAI, planned_teacher
from eva_fast.teachers import load_teacher

GRID, SIDE, MASKED = (4, 4), 64, 6


def planned(name, grid=GRID):
    return planned_teacher(name, grid, torch.float32)


def arithmetic(operators):
    return sum(op.flops for op in operators)


@pytest.mark.parametrize("name", ["builtin", "hog"])
def test_the_count_is_that_of_the_real_teacher(name):
    found, real = planned(name), load_teacher(name, grid=GRID)
    assert found.dim == real.dim and found.name == name
    assert found.parameters == sum(p.numel() for p in real.parameters())
    options = dict(teacher=name, whiten=False, model="eva_ti_patch16_64", mask_count=MASKED)
    run = PlannedRun.of(Config.from_options(options), torch.float32, "cpu")
    recorder = Recorder()
    with recorder, torch.no_grad():
        images = torch.randint(0, 256, (5, 3, SIDE, SIDE), dtype=torch.uint8)
        real(images, torch.arange(MASKED, dtype=torch.int32).repeat(5, 1))
    counted = run.teacher_operators(5)
    assert arithmetic(counted) == arithmetic(recorder.operators)
    assert (arithmetic(counted) > 0) == (name == "builtin")


@pytest.mark.parametrize(
    ("name", "parameters", "dim"),
    [
        ("openai/ViT-L-14", 303_966_208, 768),
        ("openai/ViT-B/16", 86_192_640, 512),
        ("hf/openai/clip-vit-base-patch32", 87_849_216, 512),
    ],
)
def test_clip_towers_have_the_published_sizes(name, parameters, dim):
    """At the native grid, whose positions they were trained with."""
    model = {"L-14": "ViT-L-14", "B/16": "ViT-B-16", "ch32": "ViT-B-32"}[name[-4:]]
    side = OPENAI[model][4] // OPENAI[model][3]
    found = planned(name, (side, side))
    assert (found.dim, found.parameters) == (dim, parameters)


@pytest.mark.slow
def test_other_libraries_models():
    timm, torchvision = pytest.importorskip("timm"), pytest.importorskip("torchvision")
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64)
    found = planned("timm/vit_tiny_patch16_224")
    assert found.dim == 192
    assert found.parameters == sum(p.numel() for p in model.parameters())
    found = planned("torchvision/resnet18")
    network = torchvision.models.resnet18()
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    rest = sum(p.numel() for p in network.parameters()) - sum(
        p.numel() for p in network.fc.parameters()
    )
    # a folded norm leaves a bias to its convolution
    assert found.parameters == rest - sum(m.weight.numel() for m in norms)


def test_a_module_is_taken_as_it_is():
    real = load_teacher("builtin", grid=GRID)
    found = planned_teacher(real, GRID, torch.float32)
    assert (found.dim, found.parameters) == (real.dim, planned("builtin").parameters)
    assert next(real.parameters()).device.type == "cpu"


@pytest.mark.parametrize("name", ["hf/facebook/some-model", "resnet", "openai/"])
def test_what_cannot_be_known_is_said(name):
    with pytest.raises(UsageError, match="not known without its weights"):
        planned(name)
