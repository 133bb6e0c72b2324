"""Feature Distillation as a run: it learns, is resumed bit for bit, skips a bad step, refuses what it
cannot do."""

import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

import eva_fast
from eva_fast.config import Config
from eva_fast.evaluation.students import load_checkpoint, load_student
from eva_fast.model import BeitViT
from eva_fast.objectives import open_objective
from eva_fast.objectives.feature_distillation import FeatureDistillation
from eva_fast.recipes.export import export
from eva_fast.recipes.pretrain import run
from eva_fast.train.resolve import setting_of
from tests.objectives.test_vqkd import Killed
from tests.teachers.openai_tower import Clip

CPU = torch.device("cpu")
OPTIONS = dict(
    data="builtin", objective="fd", model="beit_tiny_patch8_32", embed_dim=32, depth=2, num_heads=2,
    mlp_hidden=48, batch_size=8, accumulate=2, workers=0, device="cpu", kernels="torch",
    progress=False, log_every=1, steps=12, checkpoint_every=4, lr=3e-3, drop_path=0.2,
)  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The file of a tower with CLS."""
    torch.manual_seed(0)
    model = Clip(size=32, patch=8, width=64, heads=1, layers=1, hidden=96, dim=24)
    path = tmp_path_factory.mktemp("clip") / "ViT-quickgelu.safetensors"
    save_file({k: v.detach().contiguous() for k, v in model.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def trained(clip, tmp_path_factory):
    out = tmp_path_factory.mktemp("fd") / "run"
    return eva_fast.pretrain(teacher=clip, out=out, **OPTIONS)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_hands_on_its_student(trained):
    found = lines(trained.out)
    assert sum(r["loss"] for r in found[-4:]) < sum(r["loss"] for r in found[:4])
    assert all(r["baseline_loss"] > 0 for r in found)
    assert Image.open(trained.picture).size[0] > 3 * 208
    assert isinstance(trained.model, BeitViT)
    state = load_file(trained.weights)
    assert state.keys() == trained.model.state_dict().keys()
    assert state["rel_pos_bias.relative_position_bias_table"].any()


@pytest.mark.parametrize("name, filter", [("fd", "bilinear"), ("vqkd", "bicubic")])
def test_its_crops_are_resized_bilinearly_those_of_others_not(name, filter):
    setting = setting_of(
        Config.from_options({**OPTIONS, "objective": name, "model": "eva_ti_patch8_32"})
    )
    image, *_ = open_objective(name).sample(setting)
    assert image.cropper.interpolation == filter


def test_what_is_asked_and_what_the_loss_is(clip):
    """All tokens with CLS, of width 64 before the projection, and the loss by its definition."""
    setting = setting_of(Config.from_options({**OPTIONS, "teacher": clip}))
    objective = open_objective("fd")
    asked = objective.request(setting)
    assert (asked.rows, asked.point, asked.cls) == ("all", "norm", "optional")
    teacher = eva_fast.load_teacher(clip, point="norm", cls=True)
    module = objective.build(setting, teacher).eval()
    assert module.decoder[0].weight.shape == (64, 32, 1)
    batch, noise = objective.example(setting, teacher, 3)
    assert noise.shape == (3, 17, 64)
    target = teacher(batch.images)
    loss = objective.loss(module, batch, target)[0]
    expected = F.smooth_l1_loss(module(batch.images), F.layer_norm(target, (64,)), beta=2.0)
    torch.testing.assert_close(loss, expected)
    rows = objective.averaged(target)
    constant = rows.mean(0)
    wanted = F.smooth_l1_loss(constant.expand_as(rows), rows, beta=2.0)
    torch.testing.assert_close(objective.constant_loss(constant, rows), wanted)
    patches = objective.loss(module, batch, target[:, 1:])[0]
    expected = F.smooth_l1_loss(
        module(batch.images)[:, 1:], F.layer_norm(target[:, 1:], (64,)), beta=2.0
    )
    torch.testing.assert_close(patches, expected)


def test_killed_and_resumed_it_ends_with_the_same_bytes(trained, clip, tmp_path):
    def die(step):
        if step == 6:
            raise Killed

    with pytest.raises(Killed):
        run(Config.from_options(dict(teacher=clip, out=tmp_path, **OPTIONS)), on_step=die)
    again = eva_fast.pretrain(teacher=clip, out=tmp_path, resume="auto", **OPTIONS)
    for name in ("model.safetensors", "picture.png"):
        assert (again.out / name).read_bytes() == (trained.out / name).read_bytes()


def test_fused_layers_learn_the_same(clip, tmp_path):
    """Without drop-path, whose draws differ between the kinds of layers."""
    found = [
        lines(
            eva_fast.pretrain(
                teacher=clip, out=tmp_path / kind,
                **{**OPTIONS, "kernels": kind, "steps": 2, "drop_path": 0.0},
            ).out
        )
        for kind in ("torch", "native")
    ]  # fmt: skip
    a, b = ([r["loss"] for r in records] for records in found)
    assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("model", ["eva_tiny_patch8_32", "beit_tiny_patch8_32"])
def test_other_students_and_a_teacher_without_cls(model, tmp_path):
    options = {**OPTIONS, "model": model, "steps": 2}
    result = eva_fast.pretrain(teacher="hog", out=tmp_path, **options)
    assert all(0 < record["loss"] < 2 for record in lines(result.out))


def test_a_step_that_is_not_finite_changes_nothing(clip, tmp_path):
    seen = []

    class Stumbling(FeatureDistillation):
        def loss(self, module, batch, target):
            loss, measured = super().loss(module, batch, target)
            return (loss * torch.nan if len(seen) == 1 else loss), measured

        def after_step(self, module, applied):
            seen.append({n: v.clone() for n, v in module.state_dict().items()})

    options = {**OPTIONS, "objective": Stumbling, "steps": 3}
    eva_fast.pretrain(teacher=clip, out=tmp_path, **options)
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])
    assert not torch.equal(seen[1]["decoder.0.weight"], seen[2]["decoder.0.weight"])


def test_a_teacher_at_another_point_or_grid_is_refused(clip, tmp_path):
    projected = eva_fast.load_teacher(clip)
    with pytest.raises(ValueError, match="asks for features at 'norm'.*gives them at 'proj'"):
        eva_fast.pretrain(teacher=projected, out=tmp_path / "a", **OPTIONS)
    other = eva_fast.load_teacher(clip, point="norm", cls=True, grid=(3, 3))
    with pytest.raises(ValueError, match="3x3 grid, the student's 4x4"):
        eva_fast.pretrain(teacher=other, out=tmp_path / "b", **OPTIONS)
    assert not (tmp_path / "a").exists()


def test_its_student_in_timm_in_eval_and_from_a_checkpoint(trained, tmp_path):
    """timm's `Beit` loads it strictly and gives the same features; so do a checkpoint and a file."""
    images = torch.randn(3, 3, 32, 32)
    exported = export(trained.out, tmp_path / "model.safetensors", format="timm")
    found: dict = {}
    exec(exported.snippet, found)
    with torch.no_grad():
        expected = trained.model.forward_features(images)
        features = found["model"].forward_features(images)
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)
        for again in (
            load_student(trained.weights, CPU),
            load_student(exported.path, CPU),
            load_checkpoint(trained.checkpoint, CPU),
        ):
            assert isinstance(again, BeitViT)
            torch.testing.assert_close(again.forward_features(images), expected, rtol=0, atol=1e-5)


def test_its_student_at_another_size_is_timms_there(trained, tmp_path):
    """Exported for larger images and patches, and where a run starts from it."""
    given = export(trained.out, tmp_path / "model.safetensors", format="timm")
    other = export(
        trained.out, tmp_path / "other.safetensors", format="timm", img_size=72, patch_size=12
    )
    found, expected = {}, {}
    exec(other.snippet, found)
    exec(given.snippet, expected)
    expected["model"].set_input_size(72, 12)
    images = torch.randn(3, 3, 72, 72)
    with torch.no_grad():
        wanted = expected["model"].forward_features(images)
        torch.testing.assert_close(
            found["model"].forward_features(images), wanted, rtol=0, atol=1e-5
        )
    options = {**OPTIONS, "steps": 1, "lr": 0.0, "min_lr": 0.0, "warmup_lr": 0.0}
    options |= {"model": "beit_tiny_patch12_72", "init_from": given.path}
    started = eva_fast.pretrain(teacher="hog", out=tmp_path / "next", **options)
    torch.testing.assert_close(started.model.forward_features(images), wanted, rtol=0, atol=1e-5)
